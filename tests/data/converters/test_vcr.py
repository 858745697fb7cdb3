from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]


def question(**changes: Any) -> dict[str, Any]:
    return {
        "movie": "3015_CHARLIE_ST_CLOUD",
        "objects": ["person", "person", "dog"],
        "interesting_scores": [0],
        "answer_likelihood": "possible",
        "img_fn": "lsmdc_3015/a@0.jpg",
        "metadata_fn": "lsmdc_3015/a@0.json",
        "answer_orig": "Nothing, he is silent.",
        "question": ["What", "is", [0], "saying", "to", [1, 2], "?"],
        "answer_choices": [
            [[0], "is", "telling", [1], "to", "leave", "."],
            ["Nothing", ",", "he", "is", "silent", "."],
            [[0], "asks", [2], "for", "help", "."],
            [[1, 2], "are", "being", "thanked", "."],
        ],
        "answer_label": 2,
        "rationale_choices": [["a", "."], ["b", "."], ["c", "."], [[2], "."]],
        "rationale_label": 0,
        "img_id": "train-0",
        "question_number": 0,
        "annot_id": "train-0",
        **changes,
    }


@pytest.fixture
def images(write: Write, tmp_path: Path) -> Path:
    write(
        "vcr1images/lsmdc_3015/a@0.json",
        {
            "boxes": [[30, 20, 110, 200, 0.99], [1, 2, 3, 4, 0.9], [5, 6, 7, 8, 0.5]],
            "segms": [[[[30, 20], [110, 30], [105, 200]]], [], []],
            "names": ["person", "person", "dog"],
            "width": 1920,
            "height": 817,
        },
    )
    return tmp_path / "vcr1images"


def test_a_question_is_a_row(converter: Converter, write: Write, images: Path) -> None:
    path = write("train.jsonl", [question()])
    row = converter("vcr", path, images, prefix="vcr1images").only
    source = question()
    taken = (
        "question",
        "answer_choices",
        "answer_label",
        "rationale_choices",
        "rationale_label",
    )
    assert row == {
        "id": "vcr-train-0",
        "image": "vcr1images/lsmdc_3015/a@0.jpg",
        **{key: source[key] for key in taken},
        "class_names": ["person", "person", "dog"],
        "meta_dir": "vcr1images/lsmdc_3015/a@0.json",
    }
    assert converter("vcr", path, prefix="vcr1images").only == row


def test_the_test_part_has_no_answers(converter: Converter, write: Write) -> None:
    asked = question()
    del asked["answer_label"]
    found = converter("vcr", write("test.jsonl", [asked]))
    assert found.rows == []
    assert sum(found.report.skipped.values()) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objects": ["person"] * 5}, "3 boxes for 5 objects"),
        ({"metadata_fn": "nowhere.json"}, "no such metadata file"),
        ({"question": ["What", [3], "?"]}, "name object 3"),
        ({"img_fn": "../a.jpg"}, "outside the folder"),
    ],
)
def test_broken_questions_are_failures(
    converter: Converter, write: Write, images: Path, changes: dict[str, Any], told: str
) -> None:
    path = write("train.jsonl", [question(**changes)])
    with pytest.raises(DataError, match=told):
        converter("vcr", path, images)


def test_the_second_name_is_a_folder(converter: Converter, write: Write) -> None:
    path = write("train.jsonl", [question()])
    with pytest.raises(DataError, match="must be the folder vcr1images"):
        converter("vcr", path, path)
