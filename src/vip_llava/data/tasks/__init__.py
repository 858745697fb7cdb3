"""Tasks: from a row to the marks on its image and the final text. One file for each source.

`arrange` is the entry point. Its result depends on the row, the image size and the generator alone,
in every process, order and epoch. It does not modify the row. The package does not know files of
rows, tokens or image pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vip_llava.data.fields import DataRow, MarkedRow
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
from vip_llava.data.tasks.common import (
    ArrangedRow,
    PromptStyle,
    TaskContext,
    remove_image_markers,
)
from vip_llava.errors import DataError

__all__ = ["TASKS", "ArrangedRow", "TaskContext", "arrange"]

#: Kind of row -> its task. A new source adds a file and a line here.
TASKS: dict[str, Callable[[Any, TaskContext], ArrangedRow]] = {
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


def arrange(
    row: DataRow,
    size: tuple[int, int] | None,
    rng: random.Random,
    *,
    images: Path | None = None,
    alpha: int | None = None,
    style: PromptStyle | None = None,
) -> ArrangedRow:
    """The marks and the final text of a row.

    Args:
        row: a validated row.
        size: (width, height) of its image in pixels; None without an image.
        rng: the only source of randomness.
        images: the folder of images, which VCR rows with `meta_dir` need.
        alpha: opacity (0..255) of all marks; None samples it.
        style: asks VCR rows as the evaluations do.

    Raises:
        DataError: a box outside the image, a misplaced `<image>`, an unreadable file of boxes, or
            marks without distinct phrases; names the row's id, field and rule.
    """
    if style not in (None, "vcr_qa", "vcr_qar"):
        raise DataError(f'unknown prompt style {style!r}; known: "vcr_qa", "vcr_qar" (or None)')
    try:
        if size is None and isinstance(row, MarkedRow):
            raise DataError("field image: marking it needs its size")
        arranged = TASKS[row.kind](row, TaskContext(size or (0, 0), rng, alpha, style, images))
        turns = remove_image_markers(arranged.turns, len(row.images))
    except DataError as error:
        raise DataError(f"id {row.id!r}: {error}") from None
    return ArrangedRow(arranged.regions, turns)
