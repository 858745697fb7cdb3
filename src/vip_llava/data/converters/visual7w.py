"""Visual7W pointing: which of four boxes answers the question?

Reads `dataset_v7w_pointing.json`. Every question is one row of the v7w kind: four boxes, in an
order that says nothing about the answer and is the same each time, and the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from vip_llava.data.converters.base import (
    Account,
    LeftOut,
    Raw,
    Source,
    box_of_corner_and_size,
    each,
    image_name,
    read_json,
)

__all__ = ["SOURCE"]


def _read(raw: Raw, account: Account) -> Iterator[dict[str, Any]]:
    path = raw.files[0]
    content = read_json(path, "images", "boxes")
    boxes = {box["box_id"]: box for box in content["boxes"]}

    def build(entry: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
        image, asked = entry
        right = asked["answer"]
        order = sorted((right, *asked["multiple_choices"]), key=lambda box: _key(asked, box))
        places = {box: _box(boxes[box]) for box in order}
        choices = [places[box] for box in order]
        if any(choices.count(choice) > 1 for choice in choices):
            raise LeftOut("a question with the same box twice")
        return {
            "id": f"v7w-{asked['qa_id']}",
            "image": image_name(image["filename"], raw),
            "question": asked["question"].strip(),
            "bboxes": choices,
            "answer": places[right],
        }

    entries = (
        (f"{path.name}, question {asked.get('qa_id')}", (image, asked))
        for image in content["images"]
        if raw.wants(image.get("image_id"), image.get("split", ""))
        for asked in image["qa_pairs"]
    )
    yield from each(entries, build, account)


def _key(asked: Mapping[str, Any], box: Any) -> bytes:
    """Where a box stands among the four: a hash, so that no generator and no state is needed."""
    return hashlib.sha256(f"{asked['qa_id']}/{box}".encode()).digest()


def _box(box: Mapping[str, Any]) -> list[float | int]:
    return box_of_corner_and_size((box["x"], box["y"], box["width"], box["height"]))


SOURCE = Source(
    name="visual7w",
    kind="v7w",
    needs=("dataset_v7w_pointing.json",),
    read=_read,
    splits=("train", "val", "test"),
)
