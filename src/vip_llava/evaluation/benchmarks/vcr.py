"""Visual Commonsense Reasoning (Zellers et al., CVPR 2019): the answer, the reason, and both.

Data: `vcr-val.json` as the original publishes it. Q->A asks for one of four answers; QA->R gives
the right answer and asks for one of four reasons. The joint score Q->AR, for which the original has
no program, counts a row whose answer and reason are both right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from vip_llava.data.region_rows import VcrRow
from vip_llava.evaluation.benchmark import BenchmarkItem
from vip_llava.evaluation.benchmarks.proportions import letter_scores
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.choices import score_letter
from vip_llava.evaluation.intervals import proportion
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score

__all__ = ["Vcr"]

_TITLES = {"qa": "Q->A", "qar": "QA->R"}


class Vcr(RowBenchmark):
    """Each row is two items: group "qa" for the answer, group "qar" for the reason."""

    name = "vcr"
    about = "VCR: Q->A, QA->R and the joint Q->AR"
    needs = "vcr-val.json and its images"
    groups = ("qa", "qar")
    kind = "vcr"
    file_patterns = ("vcr-val.json", "vcr_val.json", "vcr*val*.json*", "vcr*.json*")

    def items_of_row(self, row: VcrRow, index: int) -> Iterator[BenchmarkItem]:
        labels = {"qa": row.answer_label, "qar": row.rationale_label}
        facts = {"question_id": row.id, "row": f"{row.id} {index}"}
        for group in self.chosen:
            build = self.request_builder(index, "vcr_qa" if group == "qa" else "vcr_qar")
            letter = "ABCD"[labels[group]]
            yield BenchmarkItem(f"{row.id}/{group}", group, letter, build, row.images[0], facts)

    def items_of_invalid_row(self, item: BenchmarkItem) -> list[BenchmarkItem]:
        facts, build = {"question_id": item.id, "row": item.id}, item.build_request
        return [
            BenchmarkItem(f"{item.id}/{group}", group, None, build, item.image, facts)
            for group in self.chosen
        ]

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        return score_letter(expected, answer)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        scores = _joint_score(rows)
        for group, title in _TITLES.items():
            several = [row for row in rows if row.group == group]
            if several:
                scores += letter_scores(several, group=title, axis="task")
        return scores


def _joint_score(rows: Sequence[ResultRow]) -> list[Score]:
    """Q->AR over the rows that were asked for both; none if there are no such rows."""
    by_row: dict[str, list[ResultRow]] = defaultdict(list)
    for row in rows:
        by_row[str(row.facts["row"])].append(row)
    pairs = [pair for pair in by_row.values() if len(pair) == 2]
    if not pairs:
        return []
    hits = sum(all(row.right and row.failed is None for row in pair) for pair in pairs)
    value, low, high = proportion(hits, len(pairs))
    failed = sum(any(row.failed is not None for row in pair) for pair in pairs)
    method = "answer and reason of the same row are right"
    count = len(pairs)
    return [Score("accuracy", "Q->AR", value, count, low, high, failed, axis="task", method=method)]
