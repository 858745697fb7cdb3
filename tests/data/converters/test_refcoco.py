from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]
OUTLINE = [[40.0, 30.0, 120.0, 30.0, 130.0, 100.0, 50.0, 110.0]]
INSTANCES = {
    "images": [
        {"id": 5, "file_name": "COCO_train2014_000000000005.jpg", "width": 640, "height": 480}
    ],
    "annotations": [
        {
            "id": 700,
            "image_id": 5,
            "category_id": 1,
            "bbox": [40, 30, 90, 80],
            "segmentation": OUTLINE,
        }
    ],
    "categories": [{"id": 1, "name": "person"}],
}


def reference(**changes: Any) -> dict[str, Any]:
    return {
        "ref_id": 31,
        "ann_id": 700,
        "image_id": 5,
        "category_id": 1,
        "split": "train",
        "file_name": "COCO_train2014_000000000005_0.jpg",
        "sent_ids": [80, 81],
        "sentences": [
            {
                "sent_id": 80,
                "raw": "The man on the left.",
                "sent": "the man on the left",
                "tokens": ["the", "man", "on", "the", "left"],
            },
            {"sent_id": 81, "raw": "guy", "sent": "guy", "tokens": ["guy"]},
        ],
        **changes,
    }


@pytest.fixture
def things(write: Write) -> Path:
    return write("instances.json", INSTANCES)


@pytest.mark.parametrize("name", ["refs.json", "refs.jsonl"])
def test_every_phrase_is_a_row(converter: Converter, write: Write, things: Path, name: str) -> None:
    found = converter("refcocog", write(name, [reference()]), things, prefix="train2014")
    assert found.rows[0] == {
        "id": "refcocog-31-80",
        "image": "train2014/COCO_train2014_000000000005.jpg",
        "bboxes": [[40, 30, 130, 110]],
        "segmentations": [OUTLINE],
        "answer": "the man on the left",
    }
    assert [row["answer"] for row in found.rows] == ["the man on the left", "guy"]


def test_the_sets_have_ids_of_their_own(converter: Converter, write: Write, things: Path) -> None:
    refs = write("refs.json", [reference()])
    ids = {
        row["id"]
        for name in ("refcoco", "refcoco+", "refcocog")
        for row in converter(name, refs, things).rows
    }
    assert len(ids) == 6
    assert "refcocog-refcoco+-31-80" in ids


def test_the_split_is_taken(converter: Converter, write: Write, things: Path) -> None:
    refs = write("refs.json", [reference(), reference(ref_id=32, split="testA")])
    assert len(converter("refcoco", refs, things).rows) == 4
    assert {
        row["id"].split("-")[2] for row in converter("refcoco", refs, things, split="testA").rows
    } == {"32"}


def test_the_published_pickle_is_refused_before_anything_is_read(
    converter: Converter, write: Write, things: Path, tmp_path: Path
) -> None:
    path = tmp_path / "refs(umd).p"
    path.write_bytes(b"\x80\x03]q\x00.")
    things.write_text("not even JSON")
    with pytest.raises(DataError, match=r"refs\(umd\)\.p: a pickle.*json\.dump"):
        converter("refcocog", path, things)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (reference(ann_id=1), "1 is missing"),
        (reference(image_id=1), "1 is missing"),
        (reference(sentences=[{"sent_id": 3}]), "'raw' is missing"),
    ],
)
def test_references_to_nothing_are_failures(
    converter: Converter, write: Write, things: Path, broken: dict[str, Any], told: str
) -> None:
    refs = write("refs.json", [broken])
    with pytest.raises(DataError, match=told):
        converter("refcocog", refs, things)


def test_another_list_is_no_references(converter: Converter, write: Write, things: Path) -> None:
    with pytest.raises(DataError, match="not a reference"):
        converter("refcocog", write("refs.json", [{"id": 3}]), things)


def test_a_run_length_outline_is_left_empty(converter: Converter, write: Write) -> None:
    crowd = {"size": [480, 640], "counts": [0, 5]}
    content = {**INSTANCES, "annotations": [{**INSTANCES["annotations"][0], "segmentation": crowd}]}
    refs = write("refs.json", [reference()])
    found = converter("refcocog", refs, write("i.json", content))
    assert found.rows[0]["segmentations"] == [None]
