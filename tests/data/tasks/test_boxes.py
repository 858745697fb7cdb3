"""RefCOCOg, Visual Genome, Visual7W, PointQA and one's own rows: words, shares and answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from vip_llava.data.tasks import ArrangedRow
from vip_llava.regions import Point, phrase

Arranger = Callable[..., list[ArrangedRow]]
BOX = [40, 30, 130, 110]
OTHER = [190, 60, 260, 160]


def share(found: int, of: int) -> float:
    return found / of


def test_refcocog_says_the_mark_in_three_of_four_questions(arranged: Arranger) -> None:
    """Defect 2: the original asked "Describe the object . Please ..."."""
    row = {"id": "refcocog-1", "image": "a.jpg", "bboxes": [BOX], "answer": "the man"}
    counts: Counter[str] = Counter()
    for marked in arranged(row, 800):
        words = phrase(marked.regions[0])
        found = re.fullmatch(
            r"Describe the (.*)\. Please provide a short phrase\.", marked.turns[0].text
        )
        assert found
        counts[found[1].replace(words, "WORDS")] += 1
        assert marked.turns[1].text == "the man"
    assert set(counts) == {"object WORDS", "object with the visual prompt", "pointed region"}
    assert 0.70 < share(counts["object WORDS"], 800) < 0.80
    assert 0.09 < share(counts["pointed region"], 800) < 0.16


def test_refcocog_draws_all_shapes_alike(arranged: Arranger) -> None:
    row = {"id": "refcocog-1", "image": "a.jpg", "bboxes": [BOX], "answer": "the man"}
    shapes = Counter(marked.regions[0].shape for marked in arranged(row, 800))
    assert len(shapes) == 8
    assert all(0.08 < share(count, 800) < 0.17 for count in shapes.values())


def test_a_point_needs_no_outline(arranged: Arranger) -> None:
    """Defect 9: an AttributeError in the original."""
    row = {
        "id": "refcocog-1",
        "image": "a.jpg",
        "bboxes": [BOX],
        "segmentations": [None],
        "answer": "x",
    }
    points = [m.regions[0] for m in arranged(row, 60) if isinstance(m.regions[0], Point)]
    assert points
    assert all(40 <= point.x <= 130 and 30 <= point.y <= 110 for point in points)


def test_refcocog_with_several_boxes_names_all(arranged: Arranger) -> None:
    """Defect 4: the original painted them in one colour."""
    row = {"id": "refcocog-1", "image": "a.jpg", "bboxes": [BOX, OTHER], "answer": "the men"}
    named = 0
    for marked in arranged(row, 200):
        first, second = map(phrase, marked.regions)
        assert first != second
        named += f"object {first} and {second}. Please" in marked.turns[0].text
        assert first in marked.turns[0].text or re.search(
            "visual prompt|pointed region", marked.turns[0].text
        )
    assert 125 < named < 175


def test_gpt4v_talk_keeps_one_wording_in_all_turns(arranged: Arranger) -> None:
    turns = [
        {"from": "human", "value": "What does the person <bbox> do?"},
        {"from": "gpt", "value": "The person <bbox> smiles, <bbox0> waves."},
    ]
    row = {"id": "refcocog-gpt4v-1", "image": "a.jpg", "bboxes": [BOX], "conversations": turns}
    for marked in arranged(row):
        words = phrase(marked.regions[0])
        assert marked.turns[0].text == f"What does the person {words} do?"
        assert marked.turns[1].text == f"The person {words} smiles, {words} waves."


def test_relations_name_subject_and_object(arranged: Arranger) -> None:
    row = {"id": "vg_rel-1", "image": "a.jpg", "bboxes": [BOX, OTHER], "answer": "man, holds, cup"}
    colors = []
    for marked in arranged(row, 200):
        first, second = marked.regions
        assert (
            f"the subject {phrase(first)} and the object {phrase(second)}. Provide"
            in marked.turns[0].text
        )
        assert marked.turns[1].text == "man, holds, cup"
        colors.append(first.color == second.color)
        assert {first.shape, second.shape} <= {"box", "ellipse"}
    assert share(sum(colors), 200) < 0.1  # one colour for both came with every pair of two shapes


def test_relations_of_gpt4v_drop_half_of_the_articles(arranged: Arranger) -> None:
    turns = [
        {"from": "human", "value": "How do <bbox0> and <bbox1> relate?"},
        {"from": "gpt", "value": "<bbox1>!"},
    ]
    row = {"id": "vg_rel-gpt4v-1", "image": "a.jpg", "bboxes": [BOX, OTHER], "conversations": turns}
    with_article = 0
    for marked in arranged(row, 300):
        found = re.fullmatch(r"How do (within .*) and (within .*) relate\?", marked.turns[0].text)
        assert found
        assert marked.turns[1].text == f"{found[2]}!"
        with_article += sum("the" in words for words in found.groups())
    assert 0.42 < share(with_article, 600) < 0.58


def test_visual7w_has_four_colours_and_the_letter_of_the_box(arranged: Arranger) -> None:
    boxes = [BOX, OTHER, [10, 10, 30, 40], [150, 100, 180, 200]]
    for place, letter in enumerate("ABCD"):
        row = {
            "id": "v7w-1",
            "image": "a.jpg",
            "bboxes": boxes,
            "question": "Which one?",
            "answer": boxes[place],
        }
        for marked in arranged(row, 10):
            assert len({region.color for region in marked.regions}) == 4
            lines = marked.turns[0].text.split("\n")
            assert lines[0] == "Which one?"
            assert lines[-1] == "Answer with the option's letter from the given choices directly."
            for name, line, region in zip("ABCD", lines[1:5], marked.regions, strict=True):
                assert line.replace(" the ", " ") in (
                    f"{name}. The object within {region.color} rectangle",
                )
            assert marked.turns[1].text == letter


def test_pointqa_is_red_and_does_not_say_so(arranged: Arranger) -> None:
    row = {
        "id": "pointQA_twice-1",
        "image": "a.jpg",
        "bboxes": [BOX],
        "general_question": "How many?",
        "answer": 3,
    }
    (marked,) = arranged(row, 1)
    assert marked.regions[0].color == "red"
    assert [turn.text for turn in marked.turns] == [
        "How many? The exemplary object is within the rectangle.\n"
        "Answer the question using a single word or phrase.",
        "3",  # the original left the number in
    ]


def test_custom_rows_use_all_shapes_and_keep_the_text(arranged: Arranger) -> None:
    turns = [
        {"from": "human", "value": "Is the cup <bbox1> left of the man <bbox0>?"},
        {"from": "gpt", "value": "Yes"},
    ]
    row = {"id": "7", "image": "a.jpg", "bboxes": [BOX, OTHER], "conversations": turns}
    shapes = set()
    for marked in arranged(row, 100):
        first, second = map(phrase, marked.regions)
        assert marked.turns[0].text == f"Is the cup {second} left of the man {first}?"
        shapes |= {region.shape for region in marked.regions}
    assert len(shapes) == 8


def test_own_regions_are_drawn_as_given_and_worded(arranged: Arranger) -> None:
    regions = [
        {"shape": "box", "frame": "unit", "box": [0.1, 0.1, 0.5, 0.5], "color": "red", "id": "cup"},
        {"shape": "arrow", "frame": "pixel", "tail": [5, 5], "tip": [60, 60]},
    ]
    turns = [
        {"from": "human", "value": "Is <region:cup> bigger than the man <region:1>?"},
        {"from": "gpt", "value": "<region:1> is."},
    ]
    row: dict[str, Any] = {"id": "r", "image": "a.jpg", "regions": regions, "conversations": turns}
    first, second = arranged(row, 2)
    assert first == second  # nothing is random
    box, arrow = first.regions
    assert (box.id, arrow.id, box.frame) == ("cup", "1", "pixel")
    assert box.extent((320, 240)) == pytest.approx((32, 24, 160, 120))
    assert first.turns[0].text == (
        "Is the object within the red rectangle bigger than the man "
        f"pointed to by the {arrow.color} arrow?"
    )
    assert first.turns[1].text == f"The object pointed to by the {arrow.color} arrow is."
