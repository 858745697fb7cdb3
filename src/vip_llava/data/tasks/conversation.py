"""Conversations with any number of images and no marks."""

from __future__ import annotations

from vip_llava.data.fields import DataRow
from vip_llava.data.tasks.common import ArrangedRow, TaskContext

__all__ = ["arrange"]


def arrange(row: DataRow, context: TaskContext) -> ArrangedRow:
    """The turns of the row, unchanged."""
    return ArrangedRow((), row.turns)
