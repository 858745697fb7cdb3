"""Visual Genome relations: the triplet of two marked objects; and GPT-4V's conversations."""

from __future__ import annotations

from vip_llava.data.region_rows import VgRelGpt4vRow, VgRelRow
from vip_llava.data.tasks.common import (
    ArrangedRow,
    TaskContext,
    alternate,
    mark_boxes,
    replace_boxes,
)
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange", "arrange_gpt4v"]

_QUESTION = (
    "Please describe the relationship between the subject {} and the object {}. Provide a short "
    "triplet (subject, relationship, object) to represent this. Here, the subject and object are "
    "noun phrases, and the relationship can be verbs or prepositions."
)


def arrange(row: VgRelRow, context: TaskContext) -> ArrangedRow:
    """The first box is the subject, the second the object."""
    marks = mark_boxes(context, POLICIES[row.kind], row)
    question = _QUESTION.format(*marks.phrases())
    return ArrangedRow(marks.regions, alternate(question, row.answer))


def arrange_gpt4v(row: VgRelGpt4vRow, context: TaskContext) -> ArrangedRow:
    """The row's conversation. Each box keeps one phrase; half of them omit the article."""
    marks = mark_boxes(context, POLICIES[row.kind], row)
    phrases = [marks.phrase(index, article=context.coin()) for index in range(len(row.bboxes))]
    return ArrangedRow(marks.regions, replace_boxes(row.turns, phrases))
