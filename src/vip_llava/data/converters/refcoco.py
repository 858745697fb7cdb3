"""RefCOCO, RefCOCO+ and RefCOCOg: phrases for single objects of COCO images.

Reads the references as JSON and the images and objects of `instances.json`. The references are
published as a pickle, which is refused with instructions to convert it to JSON. Each phrase becomes a
row of the refcocog kind: its box, its outline, and the phrase as the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
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
    read_lines,
)
from vip_llava.data.converters.coco import outline
from vip_llava.errors import DataError

__all__ = ["CONVERTERS"]


def _read(raw: RawFiles, report: ConversionReport, *, prefix: str) -> Iterator[dict[str, Any]]:
    references, instances = raw.files
    known = read_json(instances, "images", "annotations")
    images = {image["id"]: image for image in known["images"]}
    instances_by_id = {each["id"]: each for each in known["annotations"]}

    def build(entry: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
        reference, sentence = entry
        instance = instances_by_id[reference["ann_id"]]
        phrase = str(sentence.get("sent") or sentence["raw"]).strip()
        if not phrase:
            raise SkipEntry("an empty phrase")
        return {
            "id": f"{prefix}-{reference['ref_id']}-{sentence['sent_id']}",
            "image": image_name(images[reference["image_id"]]["file_name"], raw),
            "bboxes": [box_of_corner_and_size(instance["bbox"])],
            "segmentations": [outline(instance.get("segmentation"))],
            "answer": phrase,
        }

    yield from build_rows(_sentences(read_lines(references), raw), build, report)


def _sentences(
    found: Iterator[tuple[str, Any]], raw: RawFiles
) -> Iterator[tuple[str, tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    for where, reference in found:
        if "sentences" not in reference:
            raise DataError(f"{where}: not a reference; 'sentences' is missing")
        if raw.wants(reference.get("image_id"), reference.get("split", "")):
            for sentence in reference["sentences"]:
                yield f"{where}, reference {reference.get('ref_id')}", (reference, sentence)


def _converter(name: str, prefix: str, splits: tuple[str, ...]) -> Converter:
    return Converter(
        name=name,
        kind="refcocog",
        needs=("the references as JSON (refs*.json)", "instances.json"),
        read=partial(_read, prefix=prefix),
        splits=splits,
    )


# The name of the data set keeps ids unique when files are combined.
CONVERTERS = (
    _converter("refcoco", "refcocog-refcoco", ("train", "val", "testA", "testB")),
    _converter("refcoco+", "refcocog-refcoco+", ("train", "val", "testA", "testB")),
    _converter("refcocog", "refcocog", ("train", "val", "test")),
)
