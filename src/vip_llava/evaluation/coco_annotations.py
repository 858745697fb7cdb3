"""Labelled things of photos, for questions that are made of them: COCO-style files and regions.jsonl.

A `Subject` is one photo with its things; no image is opened. It deliberately does not know questions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vip_llava.data.converters.base import box_of_corner_and_size, read_json
from vip_llava.data.converters.coco import outline
from vip_llava.data.scenes.photos import Rectangle, Thing, is_validation
from vip_llava.data.scenes.words import canonical
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmarks.row_file import found_file, inside

__all__ = ["LISTINGS", "Broken", "Subject", "read_things"]

LISTINGS = ("regions.jsonl", "instances*.json", "annotations/instances_val*.json")


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that can't be used, in place of its thing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Subject:
    """A photo and its things in the file's order; size: width and height in pixels."""

    id: str
    image: Path
    size: tuple[int, int]
    things: tuple[Thing | Broken, ...]


def read_things(
    data: Path, images: Path | None = None, *, everything: bool = False, name: str = "this"
) -> tuple[Path, list[Subject]]:
    """The listing and its photos: a COCO instances file, or `regions.jsonl`, or a folder with one.

    everything: also the photos of `regions.jsonl` that the default model was trained on. Raises
    DataError for a file of another format; a broken entry is a `Broken` in its photo.
    """
    listing = found_file(data, LISTINGS, name)
    if listing.suffix == ".jsonl":
        return listing, _regions(listing, images or listing.parent, everything)
    return listing, _instances(listing, images or _beside(listing))


def _beside(listing: Path) -> Path:
    """Where the images are in COCO's own layout, or beside the file."""
    root = listing.parent.parent if listing.parent.name == "annotations" else listing.parent
    split = listing.stem.removeprefix("instances_")
    return root / split if (root / split).is_dir() else root


def _instances(listing: Path, images: Path) -> list[Subject]:
    content = read_json(listing, "images", "annotations", "categories")
    try:
        names = {each["id"]: canonical(each["name"]) for each in content["categories"]}
        photos = {each["id"]: each for each in content["images"]}
        entries: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in content["annotations"]:
            # A crowd is one box around many things, which no single word answers.
            if not entry.get("iscrowd"):
                entries[entry["image_id"]].append(entry)
        absent = [key for key in entries if key not in photos]
        if absent:
            raise DataError(f"{listing}: annotations of image {absent[0]}, which is absent")
        return [
            Subject(
                str(key),
                inside(images, photos[key]["file_name"]),
                (int(photos[key]["width"]), int(photos[key]["height"])),
                tuple(_thing(entry, names) for entry in several),
            )
            for key, several in entries.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{listing}: no COCO instances: {type(error).__name__} {error}") from None


def _thing(entry: Mapping[str, Any], names: Mapping[Any, str]) -> Thing | Broken:
    try:
        x1, y1, x2, y2 = (float(value) for value in box_of_corner_and_size(entry["bbox"]))
        polygons = outline(entry.get("segmentation"))
        outlines = tuple(tuple(map(float, each)) for each in polygons) if polygons else None
        return Thing(names[entry["category_id"]], (x1, y1, x2, y2), outlines)
    except KeyError as error:
        return Broken(f"annotation {entry.get('id')}: {error} is missing or refers to nothing")
    except Exception as error:  # LeftOut is no error elsewhere; here the thing can't be asked about
        return Broken(f"annotation {entry.get('id')}: {error}")


def _regions(listing: Path, images: Path, everything: bool) -> list[Subject]:
    found = []
    for number, line in enumerate(listing.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if not everything and not is_validation(row["id"]):
                continue
            things = _complete(row["objects"], row["exhaustive_for"])
            size = (int(row["width"]), int(row["height"]))
            found.append(Subject(str(row["id"]), inside(images, row["image"]), size, things))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{listing}, line {number}: {type(error).__name__} {error}") from None
    return found


def _complete(objects: Sequence[Any], promised: Sequence[str]) -> tuple[Thing, ...]:
    """The things of a photo where all COCO classes are labelled; others say nothing certain."""
    if "coco80" not in promised:
        return ()
    return tuple(
        Thing(
            canonical(each["label"]),
            _box(each["box"]),
            tuple(tuple(map(float, p)) for p in each["polygons"]) if each["polygons"] else None,
        )
        for each in objects
    )


def _box(values: Sequence[Any]) -> Rectangle:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2
