"""VCR: sentences of words and objects, the two forms of question, evaluation styles, metadata files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.data.tasks import ArrangedRow
from vip_llava.data.tasks.vcr_words import INTRODUCTIONS, WHY
from vip_llava.errors import DataError
from vip_llava.regions import Mask, phrase

Arranger = Callable[..., list[ArrangedRow]]


def bare(text: str, marked: ArrangedRow) -> str:
    """A text with every mark's words as "<id>", with and without the article."""
    for region in sorted(marked.regions, key=lambda each: -len(phrase(each))):
        words = phrase(region)
        text = re.sub(
            f"({re.escape(words)}|{re.escape(words.replace('the ', '', 1))})(?! contour)",
            f"<{region.id}>",
            text,
        )
    return text


def test_sentences_are_put_together_well(arranged: Arranger, vcr_row: dict[str, Any]) -> None:
    noun = r"(?:person|object|instance|dog)"
    for marked in arranged(vcr_row, 60):
        question, answer, why, because = (bare(turn.text, marked) for turn in marked.turns)
        assert re.search(
            rf": What is the {noun} <1> saying to the {noun} <2> and the {noun} <3>\?", question
        )
        assert question.startswith(INTRODUCTIONS)
        assert why.startswith(WHY)
        if "(A)" in question:
            assert "(B) Nothing, he doesn't speak. (C) I think the" in question
            assert re.search(
                rf"\(D\) The {noun} <1>, the {noun} <2>, and the {noun} <3> are being thanked\.$",
                question,
            )
            assert "(C)" in answer
            if "friend" in answer:  # "I" keeps its capital inside a sentence
                assert re.search(rf"I think the {noun} <1> asks the {noun} <3>'s friend\.$", answer)
        else:
            assert re.fullmatch(rf"I think the {noun} <1> asks the {noun} <3>'s friend\.", answer)
        if "(A)" not in why:
            assert re.fullmatch(r"The (?:chair|object|instance) <4> is turning\.", because)


def test_only_named_things_are_marked(arranged: Arranger, vcr_row: dict[str, Any]) -> None:
    row = vcr_row | {"question": ["Why", "?"], "answer_label": 1, "rationale_label": 3}
    for marked in arranged(row, 40):
        text = "".join(turn.text for turn in marked.turns)
        options = [("(A)" in turn.text) for turn in marked.turns[::2]]
        expected = {(False, False): 0, (True, False): 3, (False, True): 2, (True, True): 4}
        assert len(marked.regions) == expected[options[0], options[1]]
        assert all(f"<{region.id}>" in bare(text, marked) for region in marked.regions)


def test_shares_of_forms_nouns_and_articles(arranged: Arranger, vcr_row: dict[str, Any]) -> None:
    forms: Counter[bool] = Counter()
    nouns: Counter[str] = Counter()
    letters = 0
    articles: Counter[bool] = Counter()
    for marked in arranged(vcr_row, 500):
        forms.update("(A)" in turn.text for turn in marked.turns[::2])
        letters += sum(
            re.fullmatch(r"\([A-D]\)", turn.text) is not None for turn in marked.turns[1::2]
        )
        question = bare(marked.turns[0].text, marked)
        found = re.search(r"What is the (\w+) <1>", question)
        assert found
        nouns[found[1]] += 1
        articles[phrase(marked.regions[0]) in marked.turns[0].text.split(" saying")[0]] += 1
        assert "point" not in {region.shape for region in marked.regions}
    assert 430 < forms[True] < 570
    assert 0.09 < letters / forms[True] < 0.20  # one of seven ways to answer
    assert 210 < nouns["person"] < 290
    assert 90 < nouns["object"] < 160
    assert 210 < articles[True] < 290


def test_the_question_of_an_evaluation(arranged: Arranger, vcr_row: dict[str, Any]) -> None:
    """Defects 9 and 11: these styles failed for things without outline, and could not be chosen."""
    for marked in arranged(vcr_row, style="vcr_qa"):
        assert [region.shape for region in marked.regions] == ["point"] * 3
        lines = bare(marked.turns[0].text, marked).split("\n")
        assert lines[:2] == [
            "What is the person <1> saying to the person <2> and the dog <3>?",
            "A. The person <1> is telling the person <2> to leave.",
        ]
        assert marked.turns[1].text == "C"
        assert len(marked.turns) == 2


def test_the_reason_of_an_evaluation(arranged: Arranger, vcr_row: dict[str, Any]) -> None:
    for marked in arranged(vcr_row, style="vcr_qar"):
        text = bare(marked.turns[0].text, marked)
        assert 'right. "What is the person <1> saying' in text
        assert (
            'The answer is "I think the person <1> asks the dog <3>\'s friend.".What is the rationale '
            "for this decision?\nA. The person <1> looks worried.\n" in text
        )
        assert "C. The chair <4> is turning.\n" in text
        assert marked.turns[1].text == "C"


def test_a_triangle_is_an_outline(arranged: Arranger, vcr_row: dict[str, Any]) -> None:
    """Defect 9: three corners counted as no mask."""
    masks = [m.regions[-1] for m in arranged(vcr_row, 80) if isinstance(m.regions[-1], Mask)]
    assert masks
    assert {mask.polygons for mask in masks} == {((10, 150, 80, 150, 45, 230),)}


def with_file(
    row: dict[str, Any], folder: Path, name: str = "./dataset/vcr/a.json"
) -> dict[str, Any]:
    row = dict(row)
    places = {
        "boxes": row.pop("boxes"),
        "segms": row.pop("segms"),
        "names": ["person"],
        "width": 320,
    }
    path = folder / "vcr" / "a.json"
    path.parent.mkdir()
    path.write_text(json.dumps(places), "utf-8")
    return row | {"meta_dir": name}


@pytest.mark.parametrize(
    "name", ["./dataset/vcr/a.json", "dataset/vcr/a.json", "vcr/a.json", "./vcr/a.json"]
)
def test_places_in_a_file_below_the_images(
    name: str, arranged: Arranger, vcr_row: dict[str, Any], tmp_path: Path
) -> None:
    row = with_file(vcr_row, tmp_path, name)
    assert arranged(row, images=tmp_path) == arranged(vcr_row)


def test_what_is_wrong_with_the_file_is_named(
    arranged: Arranger, vcr_row: dict[str, Any], tmp_path: Path
) -> None:
    row = with_file(vcr_row, tmp_path)
    path = tmp_path / "vcr" / "a.json"

    def refused(message: str, row: dict[str, Any] = row, images: Path | None = tmp_path) -> None:
        with pytest.raises(DataError, match=f"^id 'vcr-1': field .*{message}"):
            arranged(row, style="vcr_qar", images=images)

    refused("meta_dir: .* needs the folder of images", images=None)
    refused("meta_dir: the file .*b.json does not exist", row | {"meta_dir": "./dataset/b.json"})
    for outside in ("../secret.json", "/etc/secret.json", "a/../../b.json", "C:\\x.json"):
        refused("meta_dir: .* must be inside the folder", row | {"meta_dir": outside})
    path.write_text('{"boxes": [[1, 2, 3, 4]], "segms": []}', "utf-8")
    refused(r"boxes: object 3 has none; there are 1 \(from 0\)")
    path.write_text('{"boxes": [[1, 2, 3]]}', "utf-8")
    refused(r"meta_dir: .*a\.json: boxes\.0: .*a box is")
    path.write_text('{"segms": []}', "utf-8")
    refused(r"meta_dir: .*a\.json: boxes: ")
    path.write_text("{", "utf-8")
    refused("meta_dir: .* can't be read: ")


def test_a_row_that_names_no_thing_needs_no_file(
    arranged: Arranger, vcr_row: dict[str, Any]
) -> None:
    words = {
        name: [["a", "."], ["b", "."], ["c", "."], ["d", "."]]
        for name in ("answer_choices", "rationale_choices")
    }
    row = (
        vcr_row
        | words
        | {"question": ["What", "time", "?"], "boxes": None, "meta_dir": "./dataset/a.json"}
    )
    assert all(marked.regions == () for marked in arranged(row))
