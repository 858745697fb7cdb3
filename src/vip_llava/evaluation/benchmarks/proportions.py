"""Shares of right answers, with intervals: the scores of most benchmarks. Knows no one benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vip_llava.evaluation.intervals import share
from vip_llava.evaluation.items import Row, Score

__all__ = ["failures", "letter_scores", "share_score"]


def share_score(
    name: str,
    rows: Sequence[Row],
    *,
    group: str = "",
    axis: str = "",
    method: str = "",
    right: Callable[[Row], bool] | None = None,
) -> Score:
    """The share of rows that are right; a row that failed is not."""
    is_right = right or (lambda row: bool(row.right))
    hits = sum(row.failed is None and is_right(row) for row in rows)
    value, low, high = share(hits, len(rows))
    return Score(name, group, value, len(rows), low, high, failures(rows), axis=axis, method=method)


def letter_scores(rows: Sequence[Row], *, group: str = "", axis: str = "") -> list[Score]:
    """Accuracy with letters read from answers, and by the original's rule: the letter and no more."""
    return [
        share_score("accuracy", rows, group=group, axis=axis, method="letter read from the answer"),
        share_score(
            "accuracy, letter alone",
            rows,
            group=group,
            axis=axis,
            method="the answer is the letter and nothing else, as the original counts",
            right=lambda row: row.answer.strip().lower() == str(row.expected).lower(),
        ),
    ]


def failures(rows: Sequence[Row]) -> int:
    """How many rows could not be asked."""
    return sum(row.failed is not None for row in rows)
