"""What an evaluation produces: a row for each question that was asked, and scores over rows.

Rows and scores are JSON values, so that scores and pages can be computed again from a run directory
without the model and the data. It does not know benchmarks or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AnswerScore", "ResultRow", "Score", "count_failed"]


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The score of one answer.

    value: 0..1, or None where only a later step (a judge, a corpus metric) can tell. right: for
    questions with right answers. read: what was parsed from the answer (a letter, a number).
    """

    value: float | None
    right: bool | None = None
    read: str | None = None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A question with its answer and score, or with the reason why it failed. All JSON values.

    score, right, read: see `AnswerScore`. failed: why the question could not be asked. regions:
    as JSON, resolved. tokens: of the answer. shown: path of the drawn image in the run directory,
    if a copy was kept.
    """

    id: str
    group: str
    expected: Any
    image: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    answer: str = ""
    score: float | None = None
    right: bool | None = None
    read: str | None = None
    failed: str | None = None
    regions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokens: int = 0
    seed: int = 0
    finish_reason: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a benchmark: `value` with its 95 % interval, over `count` questions.

    kind: "proportion" (0..1, shown in percent) or "points" (shown as it is). axis: the kind of
    `group` ("shape", "capability", ...); a page has a chart for each axis. failed: how many of
    `count` questions could not be asked; they count as wrong. method: how answers were scored.
    """

    name: str
    group: str
    value: float | None
    count: int
    low: float | None = None
    high: float | None = None
    failed: int = 0
    kind: str = "proportion"
    axis: str = ""
    method: str = ""


def count_failed(rows: Sequence[ResultRow]) -> int:
    """How many rows could not be asked."""
    return sum(row.failed is not None for row in rows)
