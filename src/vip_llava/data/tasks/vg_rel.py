"""Visual Genome relations: the triplet of two marked things; and GPT-4V's conversations about them."""

from __future__ import annotations

from vip_llava.data.records import VgRelGpt4vRow, VgRelRow
from vip_llava.data.tasks.common import ArrangedRow, Job, mark, talk, with_words
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange", "arrange_gpt4v"]

_QUESTION = (
    "Please describe the relationship between the subject {} and the object {}. Provide a short "
    "triplet (subject, relationship, object) to represent this. Here, the subject and object are "
    "noun phrases, and the relationship can be verbs or prepositions."
)


def arrange(row: VgRelRow, job: Job) -> ArrangedRow:
    """The first box is the subject, the second the object."""
    groups = [[thing] for thing in zip(row.bboxes, row.segmentations, strict=True)]
    marks = mark(job, POLICIES[row.kind], groups)
    question = _QUESTION.format(marks.words(0), marks.words(1))
    return ArrangedRow(marks.regions, talk(question, row.answer))


def arrange_gpt4v(row: VgRelGpt4vRow, job: Job) -> ArrangedRow:
    """The row's conversation; each box keeps one wording, half of them without the article."""
    groups = [[thing] for thing in zip(row.bboxes, row.segmentations, strict=True)]
    marks = mark(job, POLICIES[row.kind], groups)
    words = [marks.words(place, article=job.chance()) for place in range(len(groups))]
    return ArrangedRow(marks.regions, with_words(row.turns, words))
