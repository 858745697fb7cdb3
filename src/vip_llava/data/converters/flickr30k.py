"""Flickr30k Entities: captions whose phrases are linked to boxes.

Reads the folders `Sentences` (a text file an image, a caption a line) and `Annotations` (an XML
file an image). Every caption with at least one box is one row of the flickr30k kind: the caption
with `<bboxN>` after each phrase that has boxes, and the boxes of each such phrase.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vip_llava.data.converters.base import Account, LeftOut, Raw, Source, each, image_name
from vip_llava.errors import DataError

__all__ = ["SOURCE"]

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]*)?\s+([^\]]*)\]")
_MOST_XML = 4_000_000  # bytes; the largest published annotation has some 20,000

Boxes = dict[str, list[list[int]]]


def _read(raw: Raw, account: Account) -> Iterator[dict[str, Any]]:
    sentences, annotations = raw.files
    for folder, ending in ((sentences, "txt"), (annotations, "xml")):
        if not folder.is_dir():
            raise DataError(f"{folder}: a folder with a .{ending} file for each image is expected")

    def build(entry: tuple[str, int, str, Boxes]) -> dict[str, Any]:
        image, number, caption, boxes = entry
        text, used = _grounded(caption, boxes)
        if not used:
            raise LeftOut("a caption without a box")
        return {
            "id": f"flickr30k-{image}-{number}",
            "image": image_name(f"{image}.jpg", raw),
            "bbox": used,
            "grounding": text,
        }

    yield from each(_captions(sentences, annotations, raw, account), build, account)


def _captions(
    sentences: Path, annotations: Path, raw: Raw, account: Account
) -> Iterator[tuple[str, tuple[str, int, str, Boxes]]]:
    files = sorted(sentences.glob("*.txt"))
    if not files:
        raise DataError(f"{sentences}: no .txt files there")
    for path in files:
        if not raw.wants(path.stem):
            continue
        try:
            boxes = _boxes(annotations / f"{path.stem}.xml")
        except DataError as error:
            account.failures.add(path.name, path.stem, str(error))
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
    """Entity -> its boxes [x1, y1, x2, y2], counted from 0 (the files count from 1)."""
    found: Boxes = defaultdict(list)
    for thing in _parsed(path).findall("object"):
        for place in thing.findall("bndbox"):
            x1, y1, x2, y2 = (
                int(place.findtext(key, "")) - 1 for key in ("xmin", "ymin", "xmax", "ymax")
            )
            if x2 <= x1 or y2 <= y1:
                continue
            for name in thing.findall("name"):
                found[(name.text or "").strip()].append([max(x1, 0), max(y1, 0), x2, y2])
    return dict(found)


def _parsed(path: Path) -> ElementTree.Element:
    """The root of an XML file without declarations of types or entities.

    Such declarations are how a small XML file grows without end or reads other files; the data set
    has none, so they are refused before anything is parsed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; each caption file has its annotations")
    if path.stat().st_size > _MOST_XML:
        raise DataError(f"{path}: larger than {_MOST_XML} bytes, which no annotation is")
    try:
        text = path.read_text(encoding="utf-8")
        if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            raise DataError(f"{path}: declares a document type or an entity, which is refused")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: no XML that can be read ({error})") from error


SOURCE = Source(
    name="flickr30k",
    kind="flickr30k",
    needs=("the folder Sentences", "the folder Annotations"),
    read=_read,
)
