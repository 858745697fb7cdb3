"""Visual Commonsense Reasoning: questions about marked people and objects, answers and reasons.

Reads `train.jsonl` or `val.jsonl`. If the folder of images is given, it checks that the metadata (boxes
and outlines of the detected objects) exists and has one box per object. Each question becomes a row of
the vcr kind, which names the metadata file; the task reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vip_llava.data.converters.base import (
    ConversionReport,
    Converter,
    RawFiles,
    SkipEntry,
    build_rows,
    image_name,
    read_json,
    read_lines,
)
from vip_llava.errors import DataError

__all__ = ["CONVERTER"]

_COPIED = ("question", "answer_choices", "answer_label", "rationale_choices", "rationale_label")


def _read(raw: RawFiles, report: ConversionReport) -> Iterator[dict[str, Any]]:
    folder = raw.files[1] if len(raw.files) > 1 else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: must be the folder vcr1images")

    def build(entry: Mapping[str, Any]) -> dict[str, Any]:
        if "answer_label" not in entry:
            raise SkipEntry("a question without its answer (the test split)")
        if folder is not None:
            _check(folder, entry)
        return {
            "id": f"vcr-{entry['annot_id']}",
            "image": image_name(entry["img_fn"], raw),
            **{key: entry[key] for key in _COPIED},
            "class_names": entry["objects"],
            "meta_dir": image_name(entry["metadata_fn"], raw),
        }

    entries = (
        (where, entry)
        for where, entry in read_lines(raw.files[0])
        if raw.wants(entry.get("img_id"))
    )
    yield from build_rows(entries, build, report)


def _check(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / entry["metadata_fn"]
    if not path.is_file():
        raise ValueError(f"{path}: no such metadata file")
    boxes = read_json(path, "boxes", "segms")["boxes"]
    if len(boxes) != len(entry["objects"]):
        raise ValueError(f"{path}: {len(boxes)} boxes for {len(entry['objects'])} objects")


CONVERTER = Converter(
    name="vcr",
    kind="vcr",
    needs=("train.jsonl or val.jsonl", "the folder vcr1images"),
    optional=1,
    read=_read,
)
