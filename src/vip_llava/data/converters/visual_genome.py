"""Visual Genome relationships between two objects of an image.

Reads `relationships.json` and, to find the folder of each image, `image_data.json`. Each relationship
becomes a row of the vg_rel kind: two boxes and "subject, relation, object".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vip_llava.data.converters.base import (
    ConversionReport,
    Converter,
    RawFiles,
    SkipEntry,
    box_of_corner_and_size,
    build_rows,
    image_name,
    read_lines,
)

__all__ = ["CONVERTER"]


def _read(raw: RawFiles, report: ConversionReport) -> Iterator[dict[str, Any]]:
    places = _places(raw.files[1]) if len(raw.files) > 1 else {}

    def build(entry: tuple[Any, Mapping[str, Any]]) -> dict[str, Any]:
        image, relation = entry
        ends = relation["subject"], relation["object"]
        words = (_name(ends[0]), " ".join(relation["predicate"].split()).lower(), _name(ends[1]))
        if not all(words):
            raise SkipEntry("a relationship with a word missing")
        name = places[image] if places else f"{image}.jpg"
        return {
            "id": f"vg_rel-{image}-{relation['relationship_id']}",
            "image": image_name(name, raw),
            "bboxes": [_box(end) for end in ends],
            "answer": ", ".join(words),
        }

    yield from build_rows(_relations(raw), build, report)


def _relations(raw: RawFiles) -> Iterator[tuple[str, tuple[Any, Mapping[str, Any]]]]:
    for where, entry in read_lines(raw.files[0]):
        image = entry["image_id"]
        if raw.wants(image):
            for relation in entry["relationships"]:
                named = relation.get("relationship_id")
                yield f"{where}, relationship {named}", (image, relation)


def _places(path: Path) -> dict[Any, str]:
    """Image id -> folder and file: the end of the URL of the image."""
    found = {}
    for _, entry in read_lines(path):
        parts = PurePosixPath(urlsplit(entry["url"]).path).parts
        found[entry["image_id"]] = "/".join(parts[-2:])
    return found


def _name(end: Mapping[str, Any]) -> str:
    """The name of an object; older releases have `name`, newer ones a list `names`."""
    names = end["names"] if "names" in end else [end["name"]]
    return " ".join(str(names[0]).split()).lower() if names else ""


def _box(end: Mapping[str, Any]) -> list[float | int]:
    return box_of_corner_and_size((end["x"], end["y"], end["w"], end["h"]))


CONVERTER = Converter(
    name="visual-genome",
    kind="vg_rel",
    needs=("relationships.json", "image_data.json"),
    optional=1,
    read=_read,
)
