"""COCO: instances (things with boxes and outlines) and captions, from their annotation files.

Instances become one row of the custom kind an image: a short question about each thing, largest
first. Captions become one conversation row each. Which of the two a file holds is seen from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
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

__all__ = ["SOURCE", "outline"]

#: Things asked about in one row; more turns than this make a row too long to train on.
MOST_THINGS = 8
_QUESTION = "What is the object <bbox{}>? Answer the question using a single word or phrase."
_CAPTION = "<image>\nDescribe the image in one sentence."


def _read(raw: Raw, account: Account) -> Iterator[dict[str, Any]]:
    for path in raw.files:
        content = read_json(path, "images", "annotations")
        images = {image["id"]: image for image in content["images"]}
        if any("caption" in entry for entry in content["annotations"][:1]):
            yield from _captions(path, content, images, raw, account)
        else:
            yield from _instances(path, content, images, raw, account)


def _captions(
    path: Path, content: Any, images: dict[Any, Any], raw: Raw, account: Account
) -> Iterator[dict[str, Any]]:
    def build(entry: Any) -> dict[str, Any]:
        said = entry["caption"].strip()
        if not said:
            raise LeftOut("an empty caption")
        return {
            "id": f"coco-caption-{entry['id']}",
            "image": image_name(images[entry["image_id"]]["file_name"], raw),
            "conversations": [
                {"from": "human", "value": _CAPTION},
                {"from": "gpt", "value": said},
            ],
        }

    entries = (
        (f"{path.name}, annotation {entry.get('id')}", entry)
        for entry in content["annotations"]
        if raw.wants(entry.get("image_id"))
    )
    yield from each(entries, build, account)


def _instances(
    path: Path, content: Any, images: dict[Any, Any], raw: Raw, account: Account
) -> Iterator[dict[str, Any]]:
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    things: defaultdict[Any, list[Any]] = defaultdict(list)
    for entry in content["annotations"]:
        if entry.get("iscrowd"):
            account.left_out["a crowd: one box around many things"] += 1
        else:
            things[entry.get("image_id")].append(entry)

    def build(entry: tuple[Any, list[Any]]) -> dict[str, Any]:
        image, found = entry
        largest = sorted(found, key=lambda thing: (-_area(thing), thing["id"]))[:MOST_THINGS]
        if len(found) > len(largest):
            rule = f"a thing beyond the {MOST_THINGS} largest of its image"
            account.left_out[rule] += len(found) - len(largest)
        return {
            "id": f"custom-coco-{image['id']}",
            "image": image_name(image["file_name"], raw),
            "bboxes": [box_of_corner_and_size(thing["bbox"]) for thing in largest],
            "segmentations": [outline(thing.get("segmentation")) for thing in largest],
            "conversations": _asked([names[thing["category_id"]] for thing in largest]),
        }

    strange = [key for key in things if key not in images]
    for key in strange:
        account.failures.add(path.name, str(key), f"annotations of image {key}, which is absent")
    entries = (
        (f"{path.name}, image {key}", (images[key], found))
        for key, found in things.items()
        if key in images and raw.wants(key)
    )
    yield from each(entries, build, account)


def _area(thing: Any) -> float:
    _, _, width, height = thing["bbox"]
    return float(width * height)


def _asked(labels: list[str]) -> list[dict[str, str]]:
    turns = []
    for number, label in enumerate(labels):
        first = "<image>\n" if number == 0 else ""
        turns.append({"from": "human", "value": first + _QUESTION.format(number)})
        turns.append({"from": "gpt", "value": label})
    return turns


def outline(segmentation: Any) -> list[list[float]] | None:
    """The polygons of a thing, each [x, y, x, y, ...], or None if it has none.

    Run-length masks are of crowds only, for which rows have no place; they give None. Polygons of
    fewer than three corners are no areas and are dropped.
    """
    if not isinstance(segmentation, list):
        return None
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return polygons or None


SOURCE = Source(
    name="coco",
    kind="custom",
    needs=("instances_*.json or captions_*.json",),
    read=_read,
)
