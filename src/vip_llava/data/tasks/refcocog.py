"""RefCOCOg: describe the marked thing; and GPT-4V's conversations about such things."""

from __future__ import annotations

from vip_llava.data.records import RefcocogGpt4vRow, RefcocogRow
from vip_llava.data.tasks.common import ArrangedRow, Job, listed, mark, talk, with_words
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange", "arrange_gpt4v"]

#: Share of questions that name the mark; the others only say that there is one.
_NAMED = 0.75
_GENERAL = ("object with the visual prompt", "pointed region")


def arrange(row: RefcocogRow, job: Job) -> ArrangedRow:
    """ "Describe the object within the red rectangle. ...", or without naming the mark.

    Several boxes each have a mark of their own; all are named, or none.
    """
    groups = [[thing] for thing in zip(row.bboxes, row.segmentations, strict=True)]
    marks = mark(job, POLICIES[row.kind], groups)
    if job.rng.random() < _NAMED:
        what = f"object {listed([marks.words(place) for place in range(len(groups))])}"
    else:
        what = job.rng.choice(_GENERAL)
    question = f"Describe the {what}. Please provide a short phrase."
    return ArrangedRow(marks.regions, talk(question, row.answer))


def arrange_gpt4v(row: RefcocogGpt4vRow, job: Job) -> ArrangedRow:
    """The row's conversation with the words of the marks for its placeholders."""
    groups = [[thing] for thing in zip(row.bboxes, row.segmentations, strict=True)]
    marks = mark(job, POLICIES[row.kind], groups)
    words = [marks.words(place) for place in range(len(groups))]
    return ArrangedRow(marks.regions, with_words(row.turns, words))
