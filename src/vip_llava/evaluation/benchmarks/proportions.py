"""Scores that are proportions of right answers. It does not know any one benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vip_llava.evaluation.intervals import proportion
from vip_llava.evaluation.results import ResultRow, Score, count_failed

__all__ = ["letter_scores", "proportion_score"]


def proportion_score(
    name: str,
    rows: Sequence[ResultRow],
    *,
    group: str = "",
    axis: str = "",
    method: str = "",
    right: Callable[[ResultRow], bool] = lambda row: bool(row.right),
) -> Score:
    """The proportion of rows that are right; a failed row counts as wrong."""
    hits = sum(row.failed is None and right(row) for row in rows)
    value, low, high = proportion(hits, len(rows))
    failed = count_failed(rows)
    return Score(name, group, value, len(rows), low, high, failed, axis=axis, method=method)


def letter_scores(rows: Sequence[ResultRow], *, group: str = "", axis: str = "") -> list[Score]:
    """Accuracy of the parsed letters, and of the answers that are the letter and nothing else."""
    return [
        proportion_score(
            "accuracy", rows, group=group, axis=axis, method="letter parsed from the answer"
        ),
        proportion_score(
            "accuracy, letter alone",
            rows,
            group=group,
            axis=axis,
            method="the answer is the letter and nothing else, as the original counts",
            right=lambda row: row.answer.strip().lower() == str(row.expected).lower(),
        ),
    ]
