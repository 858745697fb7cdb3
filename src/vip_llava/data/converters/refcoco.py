"""RefCOCO, RefCOCO+ and RefCOCOg: a phrase for one thing of a COCO image.

Reads the references as JSON and the images and things of `instances.json`. The references are
published as a pickle, which is refused: the message says how to turn it into JSON. Every phrase is
one row of the refcocog kind: its box, its outline, and the phrase as the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
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
    read_lines,
)
from vip_llava.data.converters.coco import outline
from vip_llava.errors import DataError

__all__ = ["SOURCES"]


def _read(raw: Raw, account: Account, *, prefix: str) -> Iterator[dict[str, Any]]:
    references, instances = raw.files
    known = read_json(instances, "images", "annotations")
    images = {image["id"]: image for image in known["images"]}
    things = {thing["id"]: thing for thing in known["annotations"]}

    def build(entry: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
        reference, sentence = entry
        thing = things[reference["ann_id"]]
        phrase = str(sentence.get("sent") or sentence["raw"]).strip()
        if not phrase:
            raise LeftOut("an empty phrase")
        return {
            "id": f"{prefix}-{reference['ref_id']}-{sentence['sent_id']}",
            "image": image_name(images[reference["image_id"]]["file_name"], raw),
            "bboxes": [box_of_corner_and_size(thing["bbox"])],
            "segmentations": [outline(thing.get("segmentation"))],
            "answer": phrase,
        }

    yield from each(_sentences(read_lines(references), raw), build, account)


def _sentences(
    found: Iterator[tuple[str, Any]], raw: Raw
) -> Iterator[tuple[str, tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    for where, reference in found:
        if "sentences" not in reference:
            raise DataError(f"{where}: no reference; an object with 'sentences' is expected")
        if raw.wants(reference.get("image_id"), reference.get("split", "")):
            for sentence in reference["sentences"]:
                yield f"{where}, reference {reference.get('ref_id')}", (reference, sentence)


def _source(name: str, prefix: str, splits: tuple[str, ...]) -> Source:
    return Source(
        name=name,
        kind="refcocog",
        needs=("the references as JSON (refs*.json)", "instances.json"),
        read=partial(_read, prefix=prefix),
        splits=splits,
    )


# All three are of one kind; the name of the set keeps ids apart when files are put together.
SOURCES = (
    _source("refcoco", "refcocog-refcoco", ("train", "val", "testA", "testB")),
    _source("refcoco+", "refcocog-refcoco+", ("train", "val", "testA", "testB")),
    _source("refcocog", "refcocog", ("train", "val", "test")),
)
