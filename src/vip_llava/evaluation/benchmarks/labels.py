"""Scores of answers that should be the label of an object: over all, without people, by label, size.

Photos are full of people, so that "person" is an easy guess. The scores therefore also leave people
out, and report how often other objects are called "person". It does not know marks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from vip_llava.evaluation.benchmarks.proportions import proportion_score
from vip_llava.evaluation.intervals import mean
from vip_llava.evaluation.label_names import canonical
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score, count_failed

__all__ = ["label_scores", "score_label", "size_scores"]

_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)
_METHOD = "the answer is the label; case, article, full stop and synonyms aside"
#: Lower bounds of the size classes: pixels of the longer side of an object.
_SIZES = (0, 20, 56, 100)


def score_label(expected: Any, answer: str) -> AnswerScore:
    """Right if the answer is the label and nothing else."""
    plain = answer.strip().rstrip(".").strip()
    label = canonical(_ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain)
    right = label == canonical(str(expected))
    return AnswerScore(float(right), right, label)


def label_scores(rows: Sequence[ResultRow], *, group: str = "", axis: str = "") -> list[Score]:
    """The scores of rows whose facts have a `label`."""
    others = [row for row in rows if row.facts["label"] != "person"]
    return [
        proportion_score("right", rows, group=group, axis=axis, method=_METHOD),
        proportion_score("right, not people", others, group=group, axis=axis, method=_METHOD),
        _mean_over_labels(rows, group, axis),
        proportion_score(
            '"person" of other things',
            others,
            group=group,
            axis=axis,
            method="lower is better",
            right=lambda row: row.read == "person",
        ),
    ]


def _mean_over_labels(rows: Sequence[ResultRow], group: str, axis: str) -> Score:
    """The mean of the accuracies of all labels, so that frequent labels count no more than others."""
    hits: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        hits[row.facts["label"]].append(float(bool(row.right)))
    value, low, high = mean([sum(each) / len(each) for each in hits.values()])
    count, failed, name = len(hits), count_failed(rows), "mean over labels"
    return Score(name, group, value, count, low, high, failed, axis=axis, method=_METHOD)


def size_scores(rows: Sequence[ResultRow]) -> list[Score]:
    """Accuracy by the size of the objects, for rows whose facts have a `side` in pixels."""
    scores = []
    for low, high in zip(_SIZES, (*_SIZES[1:], float("inf")), strict=True):
        several = [row for row in rows if low <= float(row.facts["side"]) < high]
        if several:
            title = f"{low} to {high} pixels" if high in _SIZES else f"{low} pixels and more"
            scores.append(
                proportion_score("right by size", several, group=title, axis="size", method=_METHOD)
            )
    return scores
