"""Visual7W pointing: questions that one of four boxes answers.

Reads `dataset_v7w_pointing.json`. Each question becomes a row of the v7w kind: four boxes, in a
deterministic order that is independent of the answer, and the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from vip_llava.data.converters.base import (
    ConversionReport,
    Converter,
    RawFiles,
    SkipEntry,
    box_of_corner_and_size,
    build_rows,
    image_name,
    read_json,
)

__all__ = ["CONVERTER"]


def _read(raw: RawFiles, report: ConversionReport) -> Iterator[dict[str, Any]]:
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
            raise SkipEntry("a question with the same box twice")
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
    yield from build_rows(entries, build, report)


def _key(asked: Mapping[str, Any], box: Any) -> bytes:
    """The sort key of a box among the four: a hash, which is deterministic and stateless."""
    return hashlib.sha256(f"{asked['qa_id']}/{box}".encode()).digest()


def _box(box: Mapping[str, Any]) -> list[float | int]:
    return box_of_corner_and_size((box["x"], box["y"], box["width"], box["height"]))


CONVERTER = Converter(
    name="visual7w",
    kind="v7w",
    needs=("dataset_v7w_pointing.json",),
    read=_read,
    splits=("train", "val", "test"),
)
