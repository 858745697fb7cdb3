"""Custom data: random marks for boxes that the text names by `<bboxN>`, or given Regions."""

from __future__ import annotations

from vip_llava.data.records import CustomRow, RegionsRow
from vip_llava.data.tasks.common import ArrangedRow, TaskContext, mark_boxes, replace_boxes
from vip_llava.errors import DataError, PhraseError, RegionError
from vip_llava.prompting.turns import Turn
from vip_llava.regions.phrases import expand
from vip_llava.regions.resolve import resolve
from vip_llava.regions.sampling import TRAINED_SHAPES, Policy

__all__ = ["arrange", "arrange_regions"]

_ALL_SHAPES = Policy("custom", TRAINED_SHAPES)


def arrange(row: CustomRow, context: TaskContext) -> ArrangedRow:
    """Marks of all shapes and colours. Their phrases replace the placeholders."""
    marks = mark_boxes(context, _ALL_SHAPES, row)
    return ArrangedRow(marks.regions, replace_boxes(row.turns, marks.phrases()))


def arrange_regions(row: RegionsRow, context: TaskContext) -> ArrangedRow:
    """The row's own regions. Their phrases replace `<region:ID>`. Nothing is random."""
    try:
        regions = resolve(row.regions, context.size).regions
    except RegionError as error:
        raise DataError(f"field regions: {error}") from None
    try:
        turns = tuple(Turn(each.role, expand(each.text or "", regions)) for each in row.turns)
    except PhraseError as error:
        raise DataError(f"field conversations: {error}") from None
    return ArrangedRow(regions, turns)
