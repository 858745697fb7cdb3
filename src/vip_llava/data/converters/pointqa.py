"""PointQA LookTwice: questions that count the objects of the same kind as a marked one.

Reads `looktwiceqa_dataset.json` (an object: image id -> its questions), whose splits are separate
lists of image ids, or its JSON Lines form with one question per line. Each question becomes a row of
the pointQA_twice kind: the box of the marked object and the general question.
"""

from __future__ import annotations

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
    read_lines,
)

__all__ = ["CONVERTER"]

#: The question that does not name the kind of object; the first releases called it `pt_question`.
_QUESTIONS = ("general_question", "pt_question")


def _read(raw: RawFiles, report: ConversionReport) -> Iterator[dict[str, Any]]:
    numbers: dict[str, int] = {}

    def build(entry: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
        image, asked = entry
        numbers[image] = numbers.get(image, -1) + 1
        answer = str(asked["answer"] if "answer" in asked else asked["ans"]).strip()
        question = next((asked[key] for key in _QUESTIONS if asked.get(key)), None)
        if question is None:
            raise KeyError("general_question")
        if not answer:
            raise SkipEntry("an empty answer")
        return {
            "id": f"pointQA_twice-{image}-{numbers[image]}",
            "image": image_name(asked.get("file_path", f"{image}.jpg"), raw),
            "bboxes": [_box(asked["bbox"])],
            "general_question": question.strip(),
            "answer": answer,
        }

    yield from build_rows(_questions(raw), build, report)


def _questions(raw: RawFiles) -> Iterator[tuple[str, tuple[str, Mapping[str, Any]]]]:
    path = raw.files[0]
    if path.suffix.lower() == ".jsonl":
        for where, asked in read_lines(path):
            image = str(asked.get("genome_id", asked.get("id", "")))
            if raw.wants(image):
                yield where, (image, asked)
        return
    content = read_json(path)
    for image, several in content.items():
        if raw.wants(image):
            for number, asked in enumerate(several, 1):
                yield f"{path.name}, image {image}, question {number}", (image, asked)


def _box(box: Any) -> list[float | int]:
    """A box published as a Visual Genome object (x, y, w, h), or [x1, y1, x2, y2] in JSON Lines."""
    if isinstance(box, Mapping):
        return box_of_corner_and_size((box["x"], box["y"], box["w"], box["h"]))
    x1, y1, x2, y2 = box
    return box_of_corner_and_size((x1, y1, x2 - x1, y2 - y1))


CONVERTER = Converter(
    name="pointqa",
    kind="pointQA_twice",
    needs=("looktwiceqa_dataset.json",),
    read=_read,
)
