"""Answers that should be a thing's label, and their scores: of all, of all but people, by label, by size.

Photos are full of people, and "person" is an easy guess; so the share without people stands beside the
share of all, and how often "person" was said of something else. It deliberately does not know marks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from vip_llava.data.scenes.words import canonical
from vip_llava.evaluation.benchmarks.proportions import failures, share_score
from vip_llava.evaluation.intervals import mean
from vip_llava.evaluation.items import Row, Score, Verdict

__all__ = ["judge_label", "label_scores", "said_label"]

_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)
_METHOD = "the answer is the label; case, article, full stop and synonyms aside"


def said_label(answer: str) -> str:
    """The word that an answer says, as labels are written."""
    plain = answer.strip().rstrip(".").strip()
    return canonical(_ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain)


def judge_label(expected: Any, answer: str) -> Verdict:
    """Right if the answer is the label and nothing else."""
    said = said_label(answer)
    right = said == canonical(str(expected))
    return Verdict(float(right), right, said)


def label_scores(
    rows: Sequence[Row], *, group: str = "", axis: str = "", sizes: bool = False
) -> list[Score]:
    """The scores of rows whose facts hold their `label` (and `side`, the longer side in pixels)."""
    others = [row for row in rows if _label(row) != "person"]
    found = [
        share_score("right", rows, group=group, axis=axis, method=_METHOD),
        share_score("right, not people", others, group=group, axis=axis, method=_METHOD),
        _by_label(rows, group, axis),
        share_score(
            '"person" of other things',
            others,
            group=group,
            axis=axis,
            method="lower is better",
            right=lambda row: row.read == "person",
        ),
    ]
    if sizes:
        found += _by_size(rows)
    return found


def _by_label(rows: Sequence[Row], group: str, axis: str) -> Score:
    """The mean over labels, so that a common one counts no more than a rare one."""
    hits: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        hits[_label(row)].append(float(bool(row.right)))
    value, low, high = mean([sum(each) / len(each) for each in hits.values()])
    return Score(
        "mean over labels", group, value, len(hits), low, high, failures(rows), axis=axis, method=_METHOD
    )  # fmt: skip


def _by_size(rows: Sequence[Row]) -> list[Score]:
    steps = ((0, 20), (20, 56), (56, 100), (100, None))
    found = []
    for low, high in steps:
        several = [
            row
            for row in rows
            if low <= float(row.facts["side"]) < (high if high is not None else float("inf"))
        ]
        if several:
            title = f"{low} to {high} pixels" if high else f"{low} pixels and more"
            found.append(
                share_score("right by size", several, group=title, axis="size", method=_METHOD)
            )
    return found


def _label(row: Row) -> str:
    return str(row.facts["label"])
