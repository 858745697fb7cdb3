"""COCO: instances (objects with boxes and outlines) and captions, from their annotation files.

The instances of an image become one row of the custom kind: a short question about each object,
largest first. Each caption becomes a conversation row. The content of a file decides between the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
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

__all__ = ["CONVERTER", "outline"]

#: Objects in one row; with more turns, a row would be too long to train on.
MAX_OBJECTS = 8
_QUESTION = "What is the object <bbox{}>? Answer the question using a single word or phrase."
_CAPTION = "<image>\nDescribe the image in one sentence."


def _read(raw: RawFiles, report: ConversionReport) -> Iterator[dict[str, Any]]:
    for path in raw.files:
        content = read_json(path, "images", "annotations")
        images = {image["id"]: image for image in content["images"]}
        if any("caption" in entry for entry in content["annotations"][:1]):
            yield from _captions(path, content, images, raw, report)
        else:
            yield from _instances(path, content, images, raw, report)


def _captions(
    path: Path, content: Any, images: dict[Any, Any], raw: RawFiles, report: ConversionReport
) -> Iterator[dict[str, Any]]:
    def build(entry: Any) -> dict[str, Any]:
        caption = entry["caption"].strip()
        if not caption:
            raise SkipEntry("an empty caption")
        return {
            "id": f"coco-caption-{entry['id']}",
            "image": image_name(images[entry["image_id"]]["file_name"], raw),
            "conversations": [
                {"from": "human", "value": _CAPTION},
                {"from": "gpt", "value": caption},
            ],
        }

    entries = (
        (f"{path.name}, annotation {entry.get('id')}", entry)
        for entry in content["annotations"]
        if raw.wants(entry.get("image_id"))
    )
    yield from build_rows(entries, build, report)


def _instances(
    path: Path, content: Any, images: dict[Any, Any], raw: RawFiles, report: ConversionReport
) -> Iterator[dict[str, Any]]:
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    objects: defaultdict[Any, list[Any]] = defaultdict(list)
    for entry in content["annotations"]:
        if entry.get("iscrowd"):
            report.skipped["a crowd: one box around many objects"] += 1
        else:
            objects[entry.get("image_id")].append(entry)

    def build(entry: tuple[Any, list[Any]]) -> dict[str, Any]:
        image, found = entry
        largest = sorted(found, key=lambda each: (-_area(each), each["id"]))[:MAX_OBJECTS]
        if len(found) > len(largest):
            rule = f"an object beyond the {MAX_OBJECTS} largest of its image"
            report.skipped[rule] += len(found) - len(largest)
        return {
            "id": f"custom-coco-{image['id']}",
            "image": image_name(image["file_name"], raw),
            "bboxes": [box_of_corner_and_size(each["bbox"]) for each in largest],
            "segmentations": [outline(each.get("segmentation")) for each in largest],
            "conversations": _turns([names[each["category_id"]] for each in largest]),
        }

    for key in [key for key in objects if key not in images]:
        report.failures.add(path.name, str(key), f"annotations of image {key}, which is absent")
    entries = (
        (f"{path.name}, image {key}", (images[key], found))
        for key, found in objects.items()
        if key in images and raw.wants(key)
    )
    yield from build_rows(entries, build, report)


def _area(instance: Any) -> float:
    _, _, width, height = instance["bbox"]
    return float(width * height)


def _turns(labels: list[str]) -> list[dict[str, str]]:
    turns = []
    for number, label in enumerate(labels):
        first = "<image>\n" if number == 0 else ""
        turns.append({"from": "human", "value": first + _QUESTION.format(number)})
        turns.append({"from": "gpt", "value": label})
    return turns


def outline(segmentation: Any) -> list[list[float]] | None:
    """The polygons of an object, each [x, y, x, y, ...], or None if it has none.

    Run-length masks occur for crowds only, which rows can't represent; they give None. Polygons with
    fewer than three corners are dropped.
    """
    if not isinstance(segmentation, list):
        return None
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return polygons or None


CONVERTER = Converter(
    name="coco",
    kind="custom",
    needs=("instances_*.json or captions_*.json",),
    read=_read,
)
