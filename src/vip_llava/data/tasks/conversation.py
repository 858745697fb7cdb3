"""Conversations as they are: with no, one or several images, and nothing marked."""

from __future__ import annotations

from vip_llava.data.fields import Row
from vip_llava.data.tasks.common import ArrangedRow, Job

__all__ = ["arrange"]


def arrange(row: Row, job: Job) -> ArrangedRow:
    """Nothing is drawn and no word is changed."""
    return ArrangedRow((), row.turns)
