"""RefCOCOg: describe the marked object; and GPT-4V's conversations about such objects."""

from __future__ import annotations

from vip_llava.data.region_rows import RefcocogGpt4vRow, RefcocogRow
from vip_llava.data.tasks.common import (
    ArrangedRow,
    TaskContext,
    alternate,
    join_phrases,
    mark_boxes,
    replace_boxes,
)
from vip_llava.regions.sampling import POLICIES

__all__ = ["arrange", "arrange_gpt4v"]

#: Share of questions that name the mark; the others only mention that there is one.
_NAMING_SHARE = 0.75
_GENERAL = ("object with the visual prompt", "pointed region")


def arrange(row: RefcocogRow, context: TaskContext) -> ArrangedRow:
    """ "Describe the object within the red rectangle. ...", or without naming the mark.

    Each of several boxes has its own mark. The question names all of them or none.
    """
    marks = mark_boxes(context, POLICIES[row.kind], row)
    if context.rng.random() < _NAMING_SHARE:
        target = f"object {join_phrases(marks.phrases())}"
    else:
        target = context.rng.choice(_GENERAL)
    question = f"Describe the {target}. Please provide a short phrase."
    return ArrangedRow(marks.regions, alternate(question, row.answer))


def arrange_gpt4v(row: RefcocogGpt4vRow, context: TaskContext) -> ArrangedRow:
    """The row's conversation with the phrases of the marks for its placeholders."""
    marks = mark_boxes(context, POLICIES[row.kind], row)
    return ArrangedRow(marks.regions, replace_boxes(row.turns, marks.phrases()))
