from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]

BOXES = [
    {"box_id": n, "x": 10 * n - 1, "y": 5, "width": 8, "height": 20, "name": "thing", "image_id": 4}
    for n in range(5)
]


def asked(qa_id: int = 90, **changes: Any) -> dict[str, Any]:
    return {
        "qa_id": qa_id,
        "question": "Which object is used to sit? ",
        "answer": 2,
        "multiple_choices": [0, 1, 3],
        "type": "which",
        "image_id": 4,
        **changes,
    }


def dataset(*pairs: dict[str, Any], split: str = "train") -> dict[str, Any]:
    image = {"image_id": 4, "filename": "v7w_4.jpg", "split": split, "qa_pairs": list(pairs)}
    return {"dataset": "visual7w-pointing", "images": [image], "boxes": BOXES}


def test_a_question_has_four_boxes_and_the_right_one(converter: Converter, write: Write) -> None:
    row = converter("visual7w", write("v7w.json", dataset(asked())), prefix="v7w").only
    assert row["id"] == "v7w-90"
    assert row["image"] == "v7w/v7w_4.jpg"
    assert row["question"] == "Which object is used to sit?"
    assert row["answer"] == [19, 5, 27, 25]
    assert sorted(row["bboxes"]) == [
        [0, 5, 7, 25],
        [9, 5, 17, 25],
        [19, 5, 27, 25],
        [29, 5, 37, 25],
    ]


def test_the_order_says_nothing_and_stays(converter: Converter, write: Write) -> None:
    path = write("v7w.json", dataset(*(asked(n) for n in range(400))))
    rows = converter("visual7w", path).rows
    places = Counter(row["bboxes"].index(row["answer"]) for row in rows)
    assert all(60 < places[place] < 140 for place in range(4))
    assert rows == converter("visual7w", path).rows


def test_the_same_box_twice_is_left_out(converter: Converter, write: Write) -> None:
    content = dataset(asked(multiple_choices=[0, 1, 4]))
    content["boxes"] = [*BOXES[:4], {**BOXES[2], "box_id": 4}]
    found = converter("visual7w", write("v7w.json", content))
    assert found.rows == []
    assert found.report.skipped == {"a question with the same box twice": 1}


def test_the_split_is_that_of_the_image(converter: Converter, write: Write) -> None:
    path = write("v7w.json", dataset(asked(), split="val"))
    assert converter("visual7w", path, split="train").rows == []
    assert len(converter("visual7w", path, split="val").rows) == 1


def test_a_box_that_is_absent_is_a_failure(converter: Converter, write: Write) -> None:
    path = write("v7w.json", dataset(asked(answer=44)))
    with pytest.raises(DataError, match=r"question 90.*44 is missing"):
        converter("visual7w", path)
