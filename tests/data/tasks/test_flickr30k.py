"""Flickr30k: captions with and without the marks' words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from vip_llava.data.tasks import ArrangedRow
from vip_llava.regions import phrase

Arranger = Callable[..., list[ArrangedRow]]
ROW: dict[str, Any] = {
    "id": "flickr30k-1",
    "image": "a.jpg",
    "bbox": [[[40, 30, 130, 110]], [[190, 60, 260, 160], [10, 10, 30, 40]], [[150, 100, 180, 200]]],
    "grounding": "a man <bbox0> in a hat ,  two dogs <bbox1> and a bike <bbox2>",
}
ENDS = "semantic category.", "such as a dog.", "actual visual prompt.", "actual visual prompts."


def test_half_of_the_answers_name_every_mark(arranged: Arranger) -> None:
    """Defect 5: a mark without a colour name lost its mention."""
    naming = 0
    for marked in arranged(ROW, 400):
        man, dogs, _, bike = map(phrase, marked.regions)
        named = f"A man {man} in a hat, two dogs {dogs} and a bike {bike}."
        asked = marked.turns[0].text.split(" Hint:")[0].split(" The visual")[0]
        if asked.endswith(ENDS[:2]):
            assert marked.turns[1].text == named
            naming += 1
        else:
            assert asked.endswith(ENDS[2:])
            assert marked.turns[1].text == "A man in a hat, two dogs and a bike."
    assert 160 < naming < 240


def test_boxes_of_one_phrase_share_a_mark(arranged: Arranger) -> None:
    for marked in arranged(ROW):
        assert [region.id for region in marked.regions] == ["1", "2.1", "2.2", "3"]
        first, second = marked.regions[1:3]
        assert (first.shape, first.color) == (second.shape, second.color)


def test_half_of_the_questions_list_the_marks_with_their_article(arranged: Arranger) -> None:
    """Defect 6: the list had no articles."""
    kinds: Counter[str] = Counter()
    for marked in arranged(ROW, 400):
        found = re.search(r" (Hint: the|The) visual prompts are: (.*)\.$", marked.turns[0].text)
        kinds[found[1] if found else ""] += 1
        if found:
            words = [phrase(region).split(maxsplit=1)[1] for region in marked.regions]
            words = [re.sub("^to by ", "", word) for word in (words[0], words[1], words[3])]
            assert found[2] == f"{words[0]}, {words[1]}, and {words[2]}"
    assert 160 < kinds[""] < 240
    assert 70 < kinds["Hint: the"] < 130


def test_a_phrase_without_boxes_is_not_marked(arranged: Arranger) -> None:
    for marked in arranged(ROW | {"bbox": [[], *ROW["bbox"][1:]]}):
        assert [region.id for region in marked.regions] == ["1.1", "1.2", "2"]
        assert marked.turns[1].text.startswith("A man in a hat, two dogs ")


def test_two_marks_are_listed_with_the_comma_of_the_training_texts(arranged: Arranger) -> None:
    row = ROW | {"bbox": ROW["bbox"][:2], "grounding": "a man <bbox0> and dogs <bbox1>"}
    lists = [
        each.turns[0].text.split("prompts are: ")[1]
        for each in arranged(row)
        if "are: " in each.turns[0].text
    ]
    assert lists
    assert all(re.fullmatch(r"the [\w ]+, and the [\w ]+\.", each) for each in lists)


@pytest.mark.parametrize(
    ("grounding", "answer"),
    [
        ("Dr. Who waves! e.g. hello", "Dr. Who waves! e.g. hello."),
        ("two  dogs run .", "Two dogs run."),
        ("is it a dog ?", "Is it a dog?"),
    ],
)
def test_a_caption_becomes_a_sentence(grounding: str, answer: str, arranged: Arranger) -> None:
    marked = arranged(
        {"id": "flickr30k-1", "image": "a.jpg", "bbox": [], "grounding": grounding}, 8
    )
    assert {each.turns[1].text for each in marked} == {answer}
    assert all(each.regions == () for each in marked)
    assert not any("prompts are" in each.turns[0].text for each in marked)
