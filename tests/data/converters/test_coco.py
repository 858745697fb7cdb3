from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]
OUTLINE = [[10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]]


def instances(**changes: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480},
            {"id": 25, "file_name": "000000000025.jpg", "width": 640, "height": 426},
        ],
        "annotations": [
            thing(1, 9, 1, [10, 10, 30, 20], OUTLINE),
            thing(2, 9, 17, [100.5, 50, 200, 100.25], [[1, 2, 3, 4]]),
            {
                **thing(3, 9, 1, [0, 0, 640, 400], {"size": [480, 640], "counts": [0, 5]}),
                "iscrowd": 1,
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}],
        **changes,
    }


def thing(
    id_: int, image: int, category: int, box: list[float], segmentation: Any
) -> dict[str, Any]:
    return {
        "id": id_,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "segmentation": segmentation,
        "iscrowd": 0,
    }


def test_things_become_questions_largest_first(converter: Converter, write: Write) -> None:
    found = converter("coco", write("instances.json", instances()), prefix="coco/train2017")
    question = "What is the object <bbox{}>? Answer the question using a single word or phrase."
    assert found.only == {
        "id": "custom-coco-9",
        "image": "coco/train2017/000000000009.jpg",
        "bboxes": [[100.5, 50, 300.5, 150.25], [10, 10, 40, 30]],
        "segmentations": [None, OUTLINE],
        "conversations": [
            {"from": "human", "value": "<image>\n" + question.format(0)},
            {"from": "gpt", "value": "cat"},
            {"from": "human", "value": question.format(1)},
            {"from": "gpt", "value": "person"},
        ],
    }
    assert found.report.skipped["a crowd: one box around many objects"] == 1
    assert found.report.rows == 1


def test_only_the_largest_things_are_asked_about(converter: Converter, write: Write) -> None:
    many = [thing(n, 9, 1, [0, 0, 10 + n, 10], None) for n in range(11)]
    found = converter("coco", write("instances.json", instances(annotations=many)))
    assert len(found.only["bboxes"]) == 8
    assert found.only["bboxes"][0] == [0, 0, 20, 10]
    assert sum(found.report.skipped.values()) == 3


def test_captions_become_conversations(converter: Converter, write: Write) -> None:
    content = instances(
        annotations=[
            {"image_id": 25, "id": 38, "caption": " A zebra grazing. \n"},
            {"image_id": 25, "id": 39, "caption": " "},
        ]
    )
    found = converter("coco", write("captions.json", content))
    assert found.only["image"] == "000000000025.jpg"
    assert found.only["conversations"][1] == {"from": "gpt", "value": "A zebra grazing."}
    assert found.only["conversations"][0]["value"].startswith("<image>\n")
    assert found.report.skipped["an empty caption"] == 1


def test_only_wanted_images_are_taken(converter: Converter, write: Write) -> None:
    path = write("instances.json", instances())
    assert converter("coco", path, keep=frozenset({"25"})).rows == []
    assert len(converter("coco", path, keep=frozenset({"9"})).rows) == 1


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (thing(7, 77, 1, [1, 2, 3, 4], None), "image 77"),
        (thing(7, 9, 99, [1, 2, 3, 4], None), "99 is missing"),
        (thing(7, 9, 1, [1, 2, "wide", 4], None), "wide"),
    ],
)
def test_broken_things_are_failures(
    converter: Converter, write: Write, broken: dict[str, Any], told: str
) -> None:
    path = write("instances.json", instances(annotations=[broken]))
    with pytest.raises(DataError, match=told):
        converter("coco", path)
    assert converter("coco", path, failures=1).rows == []
