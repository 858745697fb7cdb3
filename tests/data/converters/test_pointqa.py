from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "id": 2414753,
        "obj_type": "dogs",
        "obj_question": "How many dogs are there?",
        "super_question": "How many of these animals are there?",
        "general_question": "How many of these are there?",
        "ans": "2",
        "point": {"x": 85, "y": 70, "ans": "2"},
        "bbox": {"object_id": 3, "x": 40, "y": 30, "w": 90, "h": 80, "names": ["dog"]},
        **changes,
    }


def test_a_question_is_a_row(converter: Converter, write: Write) -> None:
    path = write("looktwiceqa_dataset.json", {"2414753": [asked(), asked(ans=3)], "5": [asked()]})
    found = converter("pointqa", path, prefix="vg", keep=frozenset({"2414753"}))
    assert found.rows[0] == {
        "id": "pointQA_twice-2414753-0",
        "image": "vg/2414753.jpg",
        "bboxes": [[40, 30, 130, 110]],
        "general_question": "How many of these are there?",
        "answer": "2",
    }
    assert [(row["id"][-1], row["answer"]) for row in found.rows] == [("0", "2"), ("1", "3")]


def test_the_form_as_lines(converter: Converter, write: Write) -> None:
    line = {
        "file_path": "VG_100K_2/2414753.jpg",
        "genome_id": 2414753,
        "bbox": [40, 30, 130, 110],
        "general_question": "How many of these are there?",
        "answer": "4",
    }
    row = converter("pointqa", write("twice.jsonl", [line])).only
    assert row["image"] == "VG_100K_2/2414753.jpg"
    assert row["bboxes"] == [[40, 30, 130, 110]]
    assert row["answer"] == "4"


def test_the_older_wording(converter: Converter, write: Write) -> None:
    old = asked(pt_question="How many of these stand?")
    del old["general_question"]
    path = write("looktwiceqa_dataset.json", {"1": [old]})
    assert converter("pointqa", path).only["general_question"] == "How many of these stand?"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"general_question": ""}, "general_question"),
        ({"bbox": None}, "question 1"),
    ],
)
def test_broken_questions_are_failures(
    converter: Converter, write: Write, changes: dict[str, Any], told: str
) -> None:
    path = write("looktwiceqa_dataset.json", {"1": [asked(**changes)]})
    with pytest.raises(DataError, match=told):
        converter("pointqa", path)


def test_an_empty_answer_is_left_out(converter: Converter, write: Write) -> None:
    found = converter("pointqa", write("looktwiceqa_dataset.json", {"1": [asked(ans=" ")]}))
    assert found.report.skipped == {"an empty answer": 1}
