"""Visual7W pointing: a question with four marked objects to choose from."""

from __future__ import annotations

from vip_llava.data.region_rows import V7wRow
from vip_llava.data.tasks.common import ArrangedRow, TaskContext, alternate, mark_boxes, options
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange"]


def arrange(row: V7wRow, context: TaskContext) -> ArrangedRow:
    """Four boxes in named colours as options A to D. Half of the options omit the article."""
    marks = mark_boxes(context, POLICIES[row.kind], row)
    texts = [f"The object {marks.phrase(index, article=context.coin())}" for index in range(4)]
    letter = "ABCD"[row.bboxes.index(row.answer)]
    return ArrangedRow(marks.regions, alternate(f"{row.question}\n{options(texts)}", letter))
