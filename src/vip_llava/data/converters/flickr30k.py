"""Flickr30k Entities: captions whose phrases are linked to boxes.

Reads the folders `Sentences` (a text file per image, a caption per line) and `Annotations` (an XML
file per image). Each caption with at least one box becomes a row of the flickr30k kind: the caption
with `<bboxN>` after each phrase that has boxes, and the boxes of each such phrase.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vip_llava.data.converters.base import (
    ConversionReport,
    Converter,
    RawFiles,
    SkipEntry,
    build_rows,
    image_name,
)
from vip_llava.errors import DataError

__all__ = ["CONVERTER"]

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]*)?\s+([^\]]*)\]")
_MAX_XML = 4_000_000  # bytes; the largest published annotation has about 20,000

Boxes = dict[str, list[list[int]]]


def _read(raw: RawFiles, report: ConversionReport) -> Iterator[dict[str, Any]]:
    sentences, annotations = raw.files
    for folder, ending in ((sentences, "txt"), (annotations, "xml")):
        if not folder.is_dir():
            raise DataError(f"{folder}: must be a folder with a .{ending} file per image")

    def build(entry: tuple[str, int, str, Boxes]) -> dict[str, Any]:
        image, number, caption, boxes = entry
        text, used = _grounded(caption, boxes)
        if not used:
            raise SkipEntry("a caption without a box")
        return {
            "id": f"flickr30k-{image}-{number}",
            "image": image_name(f"{image}.jpg", raw),
            "bbox": used,
            "grounding": text,
        }

    yield from build_rows(_captions(sentences, annotations, raw, report), build, report)


def _captions(
    sentences: Path, annotations: Path, raw: RawFiles, report: ConversionReport
) -> Iterator[tuple[str, tuple[str, int, str, Boxes]]]:
    files = sorted(sentences.glob("*.txt"))
    if not files:
        raise DataError(f"{sentences}: has no .txt files")
    for path in files:
        if not raw.wants(path.stem):
            continue
        try:
            boxes = _boxes(annotations / f"{path.stem}.xml")
        except DataError as error:
            report.failures.add(path.name, path.stem, str(error))
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if line.strip():
                where = f"{path.name}, line {number + 1}"
                yield where, (path.stem, number, line.strip(), boxes)


def _grounded(caption: str, boxes: Boxes) -> tuple[str, list[list[list[int]]]]:
    """The caption with `<bboxN>` in place of the links, and the boxes of each N."""
    used: dict[str, int] = {}

    def replaced(match: re.Match[str]) -> str:
        entity, phrase = match[1], match[2].strip()
        if entity not in boxes:  # not visible, or the whole scene
            return phrase
        return f"{phrase} <bbox{used.setdefault(entity, len(used))}>"

    text = _PHRASE.sub(replaced, caption)
    return text, [boxes[entity] for entity in used]


def _boxes(path: Path) -> Boxes:
    """Entity -> its boxes [x1, y1, x2, y2], with coordinates from 0 (the files count from 1)."""
    found: Boxes = defaultdict(list)
    for found_object in _parsed(path).findall("object"):
        for box in found_object.findall("bndbox"):
            x1, y1, x2, y2 = (
                int(box.findtext(key, "")) - 1 for key in ("xmin", "ymin", "xmax", "ymax")
            )
            if x2 <= x1 or y2 <= y1:
                continue
            for name in found_object.findall("name"):
                found[(name.text or "").strip()].append([max(x1, 0), max(y1, 0), x2, y2])
    return dict(found)


def _parsed(path: Path) -> ElementTree.Element:
    """The root of an XML file without document type or entity declarations.

    Such declarations let a small XML file expand without limit or read other files. The data set has
    none, so they are refused before parsing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; each caption file needs its annotations")
    if path.stat().st_size > _MAX_XML:
        raise DataError(f"{path}: larger than {_MAX_XML} bytes, unlike any annotation")
    try:
        text = path.read_text(encoding="utf-8")
        if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            raise DataError(f"{path}: declares a document type or an entity, which is refused")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: invalid XML ({error})") from error


CONVERTER = Converter(
    name="flickr30k",
    kind="flickr30k",
    needs=("the folder Sentences", "the folder Annotations"),
    read=_read,
)
