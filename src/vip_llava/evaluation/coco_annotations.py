"""Photos with labelled objects, read from COCO annotations or from `regions.jsonl`.

`regions.jsonl` has a JSON object per photo: `id`, `image`, `width`, `height`, `objects` (`label`,
`box`, `polygons`) and `exhaustive_for`, the classes of which every object is labelled. No image is
opened here. It does not know what is asked about the objects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vip_llava.data.converters.base import SkipEntry, box_of_corner_and_size, read_json
from vip_llava.data.converters.coco import outline
from vip_llava.errors import DataError
from vip_llava.evaluation.label_names import canonical
from vip_llava.evaluation.paths import find_data_file, path_inside

__all__ = [
    "AnnotatedImage",
    "InvalidAnnotation",
    "LabelledObject",
    "Rectangle",
    "is_validation",
    "object_of_json",
    "read_annotations",
]

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

_LISTINGS = ("regions.jsonl", "instances*.json", "annotations/instances_val*.json")
_VALIDATION_PERCENT = 8


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """One labelled object: its class name, its box, and its outlines where they are known.

    polygons: each as x1, y1, x2, y2, ... in pixels.
    """

    label: str
    box: Rectangle
    polygons: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class InvalidAnnotation:
    """Takes the place of an object whose annotation cannot be read."""

    reason: str


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A photo and its objects in the order of the file. size: width and height in pixels."""

    id: str
    path: Path
    size: tuple[int, int]
    objects: tuple[LabelledObject | InvalidAnnotation, ...]


def is_validation(photo_id: str) -> bool:
    """Whether a photo belongs to the validation split of the default model's data.

    The id alone decides, by its hash; about 8 of 100 photos belong to it. The default model was
    not trained on them.
    """
    digest = hashlib.sha256(f"validation/{photo_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < _VALIDATION_PERCENT


def read_annotations(
    data: Path, images: Path | None = None, *, all_photos: bool = False, name: str = "this"
) -> tuple[Path, list[AnnotatedImage]]:
    """Read a COCO instances file, a `regions.jsonl`, or the one that a folder holds.

    images: the folder of the photos, if they are elsewhere. all_photos: also the photos of
    `regions.jsonl` that are not in the validation split. name: the benchmark, for errors. Returns
    the path of the file and its photos. Raises DataError for a file of another format; an invalid
    annotation in a COCO file becomes an `InvalidAnnotation` of its photo.
    """
    listing = find_data_file(data, _LISTINGS, name)
    if listing.suffix == ".jsonl":
        return listing, _read_regions(listing, images or listing.parent, all_photos)
    return listing, _read_instances(listing, images or _image_folder(listing))


def _image_folder(listing: Path) -> Path:
    """The folder of the images: as in COCO's own layout, else that of the file."""
    root = listing.parent.parent if listing.parent.name == "annotations" else listing.parent
    split = listing.stem.removeprefix("instances_")
    return root / split if (root / split).is_dir() else root


def _read_instances(listing: Path, images: Path) -> list[AnnotatedImage]:
    content = read_json(listing, "images", "annotations", "categories")
    try:
        names = {each["id"]: canonical(each["name"]) for each in content["categories"]}
        photos = {each["id"]: each for each in content["images"]}
        annotations: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for each in content["annotations"]:
            # A crowd is one box around many objects, which no single label describes.
            if not each.get("iscrowd"):
                annotations[each["image_id"]].append(each)
        unknown = [key for key in annotations if key not in photos]
        if unknown:
            raise DataError(f"{listing}: an annotation names image {unknown[0]}, which is missing")
        return [
            AnnotatedImage(
                str(key),
                path_inside(images, photos[key]["file_name"]),
                (int(photos[key]["width"]), int(photos[key]["height"])),
                tuple(_object_of_annotation(each, names) for each in several),
            )
            for key, several in annotations.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"not a COCO instances file: {type(error).__name__} {error}"
        raise DataError(f"{listing}: {message}") from None


def _object_of_annotation(
    annotation: Mapping[str, Any], names: Mapping[Any, str]
) -> LabelledObject | InvalidAnnotation:
    where = f"annotation {annotation.get('id')}"
    try:
        x1, y1, x2, y2 = (float(value) for value in box_of_corner_and_size(annotation["bbox"]))
        polygons = outline(annotation.get("segmentation"))
        outlines = tuple(tuple(map(float, each)) for each in polygons) if polygons else None
        return LabelledObject(names[annotation["category_id"]], (x1, y1, x2, y2), outlines)
    except KeyError as error:
        return InvalidAnnotation(f"{where}: {error} is missing or unknown")
    except (SkipEntry, TypeError, ValueError) as error:
        return InvalidAnnotation(f"{where}: {error}")


def _read_regions(listing: Path, images: Path, all_photos: bool) -> list[AnnotatedImage]:
    photos = []
    for number, line in enumerate(listing.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if not all_photos and not is_validation(row["id"]):
                continue
            # Where a class is labelled in part only, an object without a label may be of it, too.
            complete = "coco80" in row["exhaustive_for"]
            objects = tuple(map(object_of_json, row["objects"])) if complete else ()
            size = (int(row["width"]), int(row["height"]))
            path = path_inside(images, row["image"])
            photos.append(AnnotatedImage(str(row["id"]), path, size, objects))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{listing}, line {number}: {type(error).__name__} {error}") from None
    return photos


def object_of_json(value: Mapping[str, Any]) -> LabelledObject:
    """An entry of `objects` in `regions.jsonl`. Raises KeyError, TypeError or ValueError."""
    box: Sequence[float] = value["box"]
    x1, y1, x2, y2 = (float(edge) for edge in box)
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
        raise ValueError(f"the box {box} is not left, top, right, bottom")
    polygons = value["polygons"]
    outlines = tuple(tuple(map(float, each)) for each in polygons) if polygons else None
    return LabelledObject(canonical(value["label"]), (x1, y1, x2, y2), outlines)
