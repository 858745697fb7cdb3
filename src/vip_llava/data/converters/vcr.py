"""Visual Commonsense Reasoning: a question about marked people and things, an answer and a reason.

Reads `train.jsonl` or `val.jsonl` and, if the folder of images is given, checks that the metadata
(boxes and outlines of the detected things) is there and has as many boxes as things. Every question
is one row of the vcr kind, which names the metadata file; it is read when the row is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vip_llava.data.converters.base import (
    Account,
    LeftOut,
    Raw,
    Source,
    each,
    image_name,
    read_json,
    read_lines,
)
from vip_llava.errors import DataError

__all__ = ["SOURCE"]

_TAKEN = ("question", "answer_choices", "answer_label", "rationale_choices", "rationale_label")


def _read(raw: Raw, account: Account) -> Iterator[dict[str, Any]]:
    folder = raw.files[1] if len(raw.files) > 1 else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: the folder vcr1images is expected")

    def build(entry: Mapping[str, Any]) -> dict[str, Any]:
        if "answer_label" not in entry:
            raise LeftOut("a question without its answer (the test part)")
        if folder is not None:
            _check(folder, entry)
        return {
            "id": f"vcr-{entry['annot_id']}",
            "image": image_name(entry["img_fn"], raw),
            **{key: entry[key] for key in _TAKEN},
            "class_names": entry["objects"],
            "meta_dir": image_name(entry["metadata_fn"], raw),
        }

    entries = (
        (where, entry)
        for where, entry in read_lines(raw.files[0])
        if raw.wants(entry.get("img_id"))
    )
    yield from each(entries, build, account)


def _check(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / entry["metadata_fn"]
    if not path.is_file():
        raise ValueError(f"{path}: the metadata is missing")
    boxes = read_json(path, "boxes", "segms")["boxes"]
    if len(boxes) != len(entry["objects"]):
        raise ValueError(f"{path}: {len(boxes)} boxes for {len(entry['objects'])} things")


SOURCE = Source(
    name="vcr",
    kind="vcr",
    needs=("train.jsonl or val.jsonl", "the folder vcr1images"),
    optional=1,
    read=_read,
)
