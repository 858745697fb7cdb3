"""Readers of photos with labelled objects, for training and evaluation.

There are two formats: a folder with `regions.jsonl` (a JSON object per photo, with boxes, outlines
and captions), and packs of photos of one object each (an `.npz` of concatenated JPEG files, or a
folder with `labels.jsonl`). Pixels are decoded when a photo is opened. An invalid row is an error
that names file and line. It does not know marks or questions.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from default_model.scenes.words import COCO80, plain_noun
from vip_llava.errors import DataError, ImageError
from vip_llava.evaluation.coco_annotations import LabelledObject, object_of_json
from vip_llava.evaluation.label_names import canonical
from vip_llava.images import open_image


@dataclass(frozen=True, slots=True)
class Photo:
    """A JPEG file, its labelled objects, and the classes whose objects are all labelled."""

    id: str
    source: str
    jpeg: bytes = field(repr=False)
    size: tuple[int, int]
    objects: tuple[LabelledObject, ...]
    captions: tuple[str, ...] = ()
    exhaustive_for: frozenset[str] = frozenset()

    def open(self) -> Image.Image:
        """Decode the image to RGB. Raises DataError with the photo's id."""
        try:
            return open_image(self.jpeg)
        except ImageError as error:
            raise DataError(f"photo {self.id} of {self.source}: {error}") from error

    @property
    def is_coco(self) -> bool:
        """Whether all objects of the 80 COCO classes are labelled."""
        return self.exhaustive_for >= frozenset(COCO80)


def read_regions(folder: Path) -> Iterator[Photo]:
    """Photos of a folder with `regions.jsonl`. Raises DataError with line and reason."""
    yield from _rows(folder, "regions.jsonl", _photo_of_row)


def _rows(
    folder: Path, name: str, build: Callable[[Path, dict[str, Any]], Photo]
) -> Iterator[Photo]:
    """The photo of each row of a JSON-lines file. Raises DataError with file, line and reason."""
    listing = folder / name
    if not listing.is_file():
        raise DataError(f"{listing} does not exist; give a folder with {name}")
    with listing.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield build(folder, json.loads(line))
            except KeyError as error:
                raise DataError(f"{listing}, line {number}: {error} is missing") from error
            except (AttributeError, TypeError, ValueError, OSError) as error:
                raise DataError(f"{listing}, line {number}: {error}") from error


def _photo_of_row(folder: Path, row: dict[str, Any]) -> Photo:
    promised = [canonical(name) for name in row["exhaustive_for"]]
    complete = frozenset(COCO80) if "coco80" in promised else frozenset(promised)
    return Photo(
        id=row["id"],
        source=row["source"],
        jpeg=(folder / row["image"]).read_bytes(),
        size=(int(row["width"]), int(row["height"])),
        objects=tuple(map(object_of_json, row["objects"])),
        captions=tuple(row["captions"]),
        exhaustive_for=complete,
    )


def read_pack(path: Path) -> Iterator[Photo]:
    """Photos of an `.npz` pack, each with its main object. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a pack of photos (.npz)")
    try:
        with np.load(path, allow_pickle=False) as pack:
            arrays = {name: pack[name] for name in pack.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read: not an .npz file of plain arrays") from error
    missing = {"jpeg", "offset", "label", "box", "filename", "name"} - set(arrays)
    if missing:
        raise DataError(f"{path} lacks the arrays {sorted(missing)}")
    offset, wnid = arrays["offset"], arrays.get("wnid")
    files = arrays["jpeg"].tobytes()
    for i, label in enumerate(arrays["label"]):
        name = str(arrays["name"][label])
        word = plain_noun(str(wnid[label]), name) if wnid is not None else canonical(name)
        jpeg = files[offset[i] : offset[i + 1]]
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG", "PNG"]) as image:
                size = image.size
        except OSError as error:
            raise DataError(f"{path}, photo {i} ({arrays['filename'][i]}): {error}") from error
        x1, y1, x2, y2 = (float(v) for v in arrays["box"][i])
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1])))
        yield Photo(
            id=f"{path.stem}/{arrays['filename'][i]}",
            source=path.stem,
            jpeg=jpeg,
            size=size,
            objects=(LabelledObject(word, box),),
        )


def read_labelled_photos(folder: Path) -> Iterator[Photo]:
    """Whole photos of a folder with `labels.jsonl` (`image` relative to the folder's parent).

    Raises DataError with line and reason.
    """
    yield from _rows(folder, "labels.jsonl", _photo_of_label)


def _photo_of_label(folder: Path, row: dict[str, Any]) -> Photo:
    width, height = int(row["width"]), int(row["height"])
    return Photo(
        id=row["image"],
        source=folder.name,
        jpeg=(folder.parent / row["image"]).read_bytes(),
        size=(width, height),
        objects=(
            LabelledObject(
                plain_noun(row["wnid"], row["label"]), (0.0, 0.0, float(width), float(height))
            ),
        ),
    )
