"""Paired comparison of runs: differences on the same questions, with intervals.

The intervals of two scores may overlap although the runs differ, since the questions are the same;
so the differences of the questions are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

from vip_llava.evaluation.intervals import mean_difference
from vip_llava.evaluation.report.markup import table
from vip_llava.evaluation.results import ResultRow

__all__ = ["differences"]


def differences(runs: Sequence[tuple[str, Sequence[ResultRow]]]) -> list[str]:
    """A table of each further run minus the first one, by group; nothing for a single run."""
    lines = []
    first, rows = runs[0]
    for name, others in runs[1:]:
        theirs = {row.id: row.score for row in others if row.score is not None}
        shared = [row for row in rows if row.score is not None and row.id in theirs]
        for group in dict.fromkeys(row.group for row in shared):
            several = [row for row in shared if row.group == group]
            value, low, high = mean_difference(
                [theirs[row.id] for row in several], [row.score or 0.0 for row in several]
            )
            if value is None or low is None or high is None:
                continue
            significant = "" if low <= 0 <= high else "yes"
            interval = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            count = str(len(several))
            lines.append([f"{name} - {first}", group or "all", count, interval, significant])
    if not lines:
        return []
    head = ["difference", "group", "shared questions", "points", "significant (95 %)"]
    return ["<h3>Side by side</h3>", table(head, lines)]
