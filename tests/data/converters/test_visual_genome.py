from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]


def end(x: int, y: int, w: int, h: int, **named: Any) -> dict[str, Any]:
    return {"object_id": x, "x": x, "y": y, "w": w, "h": h, "synsets": [], **named}


def relation(**changes: Any) -> dict[str, Any]:
    return {
        "relationship_id": 15927,
        "predicate": "ON ",
        "synsets": ["along.r.01"],
        "subject": end(40, 30, 90, 80, names=["Man"]),
        "object": end(190, 60, 70, 100, name="Wooden  Chair"),
        **changes,
    }


@pytest.fixture
def image_data(write: Write) -> Path:
    address = "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"
    return write(
        "image_data.json",
        [{"image_id": 1, "url": address, "width": 800, "height": 600, "coco_id": None}],
    )


def test_a_relationship_is_a_row(converter: Converter, write: Write, image_data: Path) -> None:
    path = write("relationships.json", [{"image_id": 1, "relationships": [relation()]}])
    found = converter("visual-genome", path, image_data, prefix="vg")
    assert found.only == {
        "id": "vg_rel-1-15927",
        "image": "vg/VG_100K_2/1.jpg",
        "bboxes": [[40, 30, 130, 110], [190, 60, 260, 160]],
        "answer": "man, on, wooden chair",
    }


def test_without_image_data_names_are_plain(converter: Converter, write: Write) -> None:
    path = write("relationships.json", [{"image_id": 7, "relationships": [relation()]}])
    assert converter("visual-genome", path).only["image"] == "7.jpg"


def test_what_has_no_words_or_no_area_is_left_out(converter: Converter, write: Write) -> None:
    several = [
        relation(predicate=" "),
        relation(subject=end(1, 2, 3, 4, names=[])),
        relation(object=end(1, 2, 0, 4, names=["leaf"])),
    ]
    path = write("relationships.json", [{"image_id": 7, "relationships": several}])
    found = converter("visual-genome", path)
    assert found.rows == []
    assert found.report.skipped == {
        "a relationship with a word missing": 2,
        "a box without area": 1,
    }


def test_a_image_that_no_one_knows_is_a_failure(
    converter: Converter, write: Write, image_data: Path
) -> None:
    path = write("relationships.json", [{"image_id": 2, "relationships": [relation()]}])
    with pytest.raises(DataError, match=r"relationship 15927.*2 is missing"):
        converter("visual-genome", path, image_data)
