"""Photos with labelled things, as training and evaluation read them.

Two sources: a folder in the `regions.jsonl` format (a JSON row a photo, with boxes, outlines and
captions), and packs of single photos (`.npz` with all JPEG files end to end). Nothing is decoded
here and nothing is random; a row that can't be used is an error that names it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vip_llava.data.words import COCO80, canonical, plain_noun
from vip_llava.errors import DataError

Rectangle = tuple[float, float, float, float]
VALIDATION_PERCENT = 8


@dataclass(frozen=True, slots=True)
class Thing:
    """One labelled thing: its word, its box (x1, y1, x2, y2 in pixels) and outlines, if known."""

    label: str
    box: Rectangle
    polygons: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo: the JPEG file's bytes, what is labelled in it, and what is promised complete."""

    id: str
    source: str
    jpeg: bytes = field(repr=False)
    size: tuple[int, int]
    things: tuple[Thing, ...]
    captions: tuple[str, ...] = ()
    exhaustive_for: frozenset[str] = frozenset()

    def open(self) -> Image.Image:
        """The decoded picture, RGB."""
        image = Image.open(io.BytesIO(self.jpeg), formats=["JPEG", "PNG"])
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")

    @property
    def is_coco(self) -> bool:
        """Whether all 80 COCO classes are labelled in it."""
        return self.exhaustive_for >= frozenset(COCO80)


def is_validation(photo_id: str) -> bool:
    """Whether a photo belongs to the validation split: fixed by its id alone, about 8 in 100."""
    digest = hashlib.sha256(f"validation/{photo_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < VALIDATION_PERCENT


def read_regions(folder: Path) -> Iterator[Photo]:
    """Photos of a folder with `regions.jsonl`. Raises DataError with line and reason."""
    listing = folder / "regions.jsonl"
    if not listing.is_file():
        raise DataError(f"{listing} does not exist: a folder with regions.jsonl is expected")
    with listing.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _photo_of_row(folder, json.loads(line))
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise DataError(f"{listing}, line {number}: {error!r}") from error


def _photo_of_row(folder: Path, row: dict[str, Any]) -> Photo:
    things = tuple(
        Thing(
            canonical(o["label"]),
            tuple(o["box"]),
            tuple(tuple(p) for p in o["polygons"]) if o["polygons"] else None,
        )
        for o in row["objects"]
    )
    promised = [canonical(name) for name in row["exhaustive_for"]]
    complete = frozenset(COCO80) if "coco80" in promised else frozenset(promised)
    return Photo(
        id=row["id"],
        source=row["source"],
        jpeg=(folder / row["image"]).read_bytes(),
        size=(row["width"], row["height"]),
        things=things,
        captions=tuple(row["captions"]),
        exhaustive_for=complete,
    )


def read_pack(path: Path) -> Iterator[Photo]:
    """Single photos of an `.npz` pack: one thing each, the main one. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: a pack of photos (.npz) is expected")
    with np.load(path, allow_pickle=False) as pack:
        arrays = {name: pack[name] for name in pack.files}
    missing = {"jpeg", "offset", "label", "box", "filename", "name"} - set(arrays)
    if missing:
        raise DataError(f"{path} lacks the arrays {sorted(missing)}")
    offset, wnid = arrays["offset"], arrays.get("wnid")
    files = arrays["jpeg"].tobytes()
    for i, label in enumerate(arrays["label"]):
        name = str(arrays["name"][label])
        word = plain_noun(str(wnid[label]), name) if wnid is not None else canonical(name)
        jpeg = files[offset[i] : offset[i + 1]]
        with Image.open(io.BytesIO(jpeg), formats=["JPEG", "PNG"]) as image:
            size = image.size
        x1, y1, x2, y2 = (float(v) for v in arrays["box"][i])
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, size[0]), min(y2, size[1]))
        yield Photo(
            id=f"{path.stem}/{arrays['filename'][i]}",
            source=path.stem,
            jpeg=jpeg,
            size=size,
            things=(Thing(word, box),),
        )


def read_labelled_photos(folder: Path) -> Iterator[Photo]:
    """Whole photos of a folder with `labels.jsonl` (`image` relative to the folder's parent)."""
    listing = folder / "labels.jsonl"
    if not listing.is_file():
        raise DataError(f"{listing} does not exist: a folder with labels.jsonl is expected")
    for row in map(json.loads, listing.read_text(encoding="utf-8").splitlines()):
        size = (row["width"], row["height"])
        yield Photo(
            id=row["image"],
            source=folder.name,
            jpeg=(folder.parent / row["image"]).read_bytes(),
            size=size,
            things=(Thing(plain_noun(row["wnid"], row["label"]), (0.0, 0.0, *map(float, size))),),
        )
