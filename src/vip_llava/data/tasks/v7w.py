"""Visual7W pointing: which of four marked things is it?"""

from __future__ import annotations

from vip_llava.data.records import V7wRow
from vip_llava.data.tasks.common import ArrangedRow, Job, mark, options, talk
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange"]


def arrange(row: V7wRow, job: Job) -> ArrangedRow:
    """Four boxes in named colours as options A to D; half of the options have no article."""
    groups = [[thing] for thing in zip(row.bboxes, row.segmentations, strict=True)]
    marks = mark(job, POLICIES[row.kind], groups)
    texts = [f"The object {marks.words(place, article=job.chance())}" for place in range(4)]
    letter = "ABCD"[row.bboxes.index(row.answer)]
    return ArrangedRow(marks.regions, talk(f"{row.question}\n{options(texts)}", letter))
