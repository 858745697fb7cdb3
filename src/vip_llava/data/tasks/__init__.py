"""Rows to what is trained: marks on the photo and the final text. One file for each source.

`arrange` is the one way in. It depends on the row, the photo's size and the generator alone: the
same three give the same marks and words, in whatever process, order or epoch. No row is changed.

It deliberately does not know files of rows, tokens or images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vip_llava.data.fields import MarkedRow, Row
from vip_llava.data.tasks import (
    conversation,
    custom,
    flickr30k,
    pointqa,
    refcocog,
    v7w,
    vcr,
    vg_rel,
)
from vip_llava.data.tasks.common import ArrangedRow, Job, PromptStyle, without_markers
from vip_llava.errors import DataError

__all__ = ["TASKS", "ArrangedRow", "Job", "arrange"]

#: Kind of row -> how it becomes marks and text. A new source is one file and one line here.
TASKS: Mapping[str, Callable[[Any, Job], ArrangedRow]] = MappingProxyType(
    {
        "conversation": conversation.arrange,
        "refcocog": refcocog.arrange,
        "refcocog-gpt4v": refcocog.arrange_gpt4v,
        "vcr": vcr.arrange,
        "vg_rel": vg_rel.arrange,
        "vg_rel-gpt4v": vg_rel.arrange_gpt4v,
        "flickr30k": flickr30k.arrange,
        "v7w": v7w.arrange,
        "pointQA_twice": pointqa.arrange,
        "custom": custom.arrange,
        "regions": custom.arrange_regions,
    }
)


def arrange(
    row: Row,
    size: tuple[int, int] | None,
    rng: random.Random,
    *,
    images: Path | None = None,
    alpha: int | None = None,
    style: PromptStyle | None = None,
) -> ArrangedRow:
    """Marks and final text of a row whose photo has `size` (width, height); None without a photo.

    images: the folder of images, which rows of VCR need for the file with their boxes. alpha:
    opacity (0..255) of all marks, else drawn. style: asks VCR rows as its evaluations do.

    Raises DataError, with the row's id, field and rule, for a box outside the photo, a misplaced
    `<image>`, an unreadable file of boxes, or marks that no words tell apart.
    """
    if style not in (None, "vcr_qa", "vcr_qar"):
        raise DataError(f'unknown prompt style {style!r}; known: "vcr_qa", "vcr_qar" (or None)')
    try:
        if size is None and isinstance(row, MarkedRow):
            raise DataError("field image: the size of the photo is needed to mark it")
        marked = TASKS[row.kind](row, Job(size or (0, 0), rng, alpha, style, images))
        turns = without_markers(marked.turns, len(row.images))
    except DataError as error:
        raise DataError(f"id {row.id!r}: {error}") from None
    return ArrangedRow(marked.regions, turns)
