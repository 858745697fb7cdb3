"""Models side by side: differences on the same questions, with intervals.

Two intervals that overlap may still hide a difference, since the questions are the same; so the
differences of each question are taken first.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vip_llava.evaluation.intervals import bootstrap
from vip_llava.evaluation.items import Row
from vip_llava.evaluation.report.markup import table

__all__ = ["differences"]


def differences(runs: Sequence[tuple[str, Sequence[Row]]]) -> list[str]:
    """A table of every other run beside the first one, by group; nothing for a single run."""
    if len(runs) < 2:
        return []
    first, rows = runs[0]
    lines = []
    for name, others in runs[1:]:
        theirs = {row.id: row for row in others if row.score is not None}
        shared = [row for row in rows if row.score is not None and row.id in theirs]
        for group in dict.fromkeys(row.group for row in shared):
            several = [row for row in shared if row.group == group]
            value, low, high = bootstrap(
                [theirs[row.id].score or 0.0 for row in several],
                [row.score or 0.0 for row in several],
            )
            if value is None or low is None or high is None:
                continue
            told = "" if low <= 0 <= high else "yes"
            interval = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            lines.append([f"{name} - {first}", group or "all", str(len(several)), interval, told])
    if not lines:
        return []
    head = ["difference", "group", "shared questions", "points", "outside chance (95 %)"]
    return [f"<h3>{escape('Side by side')}</h3>", table(head, lines)]
