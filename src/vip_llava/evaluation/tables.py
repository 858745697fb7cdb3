"""Scores as tables of text: a line for each group, a column for each score."""

from __future__ import annotations

from collections.abc import Sequence

from vip_llava.evaluation.results import Score

__all__ = ["score_tables"]

Table = tuple[list[str], list[list[str]]]
"""Column names, and lines of cells."""


def score_tables(scores: Sequence[Score]) -> list[Table]:
    """One table for each axis, in the order of the scores."""
    tables = []
    for axis in dict.fromkeys(score.axis for score in scores):
        several = [score for score in scores if score.axis == axis]
        names = list(dict.fromkeys(score.name for score in several))
        any_failed = any(score.failed for score in several)
        head = [axis or "all", "questions", *(["failed"] if any_failed else []), *names]
        lines = []
        for group in dict.fromkeys(score.group for score in several):
            found = {score.name: score for score in several if score.group == group}
            first = next(iter(found.values()))
            line = [group or "all", str(first.count)]
            line += [str(first.failed)] if any_failed else []
            line += [_with_interval(found[name]) if name in found else "" for name in names]
            lines.append(line)
        tables.append((head, lines))
    return tables


def _with_interval(score: Score) -> str:
    """ "63.1 [60.8, 65.4]": proportions in percent; empty where nothing was counted."""
    if score.value is None:
        return ""
    text = _number(score.value, score.kind)
    if score.low is None or score.high is None:
        return text
    return f"{text} [{_number(score.low, score.kind)}, {_number(score.high, score.kind)}]"


def _number(value: float, kind: str) -> str:
    return f"{100 * value:.1f}" if kind == "proportion" else f"{value:.2f}"
