"""PointQA LookTwice: a question about all objects like the one in a red box."""

from __future__ import annotations

from vip_llava.data.region_rows import PointQaTwiceRow
from vip_llava.data.tasks.common import ArrangedRow, TaskContext, alternate, mark_boxes
from vip_llava.regions.phrases import wording
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange"]


def arrange(row: PointQaTwiceRow, context: TaskContext) -> ArrangedRow:
    """The box is always red, and the text does not name its colour."""
    marks = mark_boxes(context, POLICIES[row.kind], row)
    question = (
        f"{row.general_question} The exemplary object is {wording('box')}.\n"
        "Answer the question using a single word or phrase."
    )
    return ArrangedRow(marks.regions, alternate(question, row.answer))
