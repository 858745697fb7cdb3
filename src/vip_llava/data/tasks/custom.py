"""One's own data: boxes with `<bboxN>` in the text (marked at random), or Regions as they are given."""

from __future__ import annotations

from vip_llava.data.records import CustomRow, RegionsRow
from vip_llava.data.tasks.common import ArrangedRow, Job, mark, with_words
from vip_llava.errors import DataError, PhraseError, RegionError
from vip_llava.prompting.turns import Turn
from vip_llava.regions.phrases import expand
from vip_llava.regions.resolve import resolve
from vip_llava.regions.sampling import Policy
from vip_llava.regions.shapes import SHAPES

__all__ = ["arrange", "arrange_regions"]

_ANY = Policy("custom", tuple(SHAPES))


def arrange(row: CustomRow, job: Job) -> ArrangedRow:
    """All shapes and colours; the words replace the placeholders as they stand in the text."""
    groups = [[thing] for thing in zip(row.bboxes, row.segmentations, strict=True)]
    marks = mark(job, _ANY, groups)
    words = [marks.words(place) for place in range(len(groups))]
    return ArrangedRow(marks.regions, with_words(row.turns, words))


def arrange_regions(row: RegionsRow, job: Job) -> ArrangedRow:
    """The row's own marks; `<region:ID>` becomes the trained words. Nothing is random."""
    try:
        regions = resolve(row.regions, job.size).regions
    except RegionError as error:
        raise DataError(f"field regions: {error}") from None
    try:
        turns = tuple(Turn(each.role, expand(each.text or "", regions)) for each in row.turns)
    except PhraseError as error:
        raise DataError(f"field conversations: {error}") from None
    return ArrangedRow(regions, turns)
