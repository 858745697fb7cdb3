"""PointQA LookTwice: a question about all things like the one in a red box."""

from __future__ import annotations

from vip_llava.data.records import PointQaTwiceRow
from vip_llava.data.tasks.common import ArrangedRow, Job, mark, talk
from vip_llava.regions.phrases import wording
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange"]


def arrange(row: PointQaTwiceRow, job: Job) -> ArrangedRow:
    """The box is always red, and its colour is never said."""
    marks = mark(job, POLICIES[row.kind], [[(row.bboxes[0], row.segmentations[0])]])
    question = (
        f"{row.general_question} The exemplary object is {wording('box')}.\n"
        "Answer the question using a single word or phrase."
    )
    return ArrangedRow(marks.regions, talk(question, row.answer))
