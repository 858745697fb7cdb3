"""Visual Commonsense Reasoning (Zellers et al., CVPR 2019): the answer, the reason, and both.

Data: `vcr-val.json` as the original publishes it. Q->A asks for one of four answers, QA->R gives the
right answer and asks for one of four reasons; the joint score Q->AR, which the original has no program
for, counts a row where both are right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vip_llava.data.region_rows import VcrRow
from vip_llava.evaluation.benchmarks.proportions import letter_scores
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.choices import judge_letter
from vip_llava.evaluation.intervals import share
from vip_llava.evaluation.items import Item, Row, Score, Verdict

__all__ = ["Vcr"]

_TITLES = {"qa": "Q->A", "qar": "QA->R"}


class Vcr(RowBenchmark):
    """Each row is asked twice: group "qa" for the answer, group "qar" for the reason."""

    name = "vcr"
    about = "VCR: Q->A, QA->R and the joint Q->AR"
    needs = "vcr-val.json and its images"
    groups = ("qa", "qar")
    kind = "vcr"
    files_of = ("vcr-val.json", "vcr_val.json", "vcr*val*.json*", "vcr*.json*")
    max_new_tokens = 128

    def of_row(self, row: VcrRow, index: int) -> Iterator[Item]:
        labels = {"qa": row.answer_label, "qar": row.rationale_label}
        for group in self.chosen:
            make = self.make(index, "vcr_qa" if group == "qa" else "vcr_qar")
            facts = {"question_id": row.id, "row": f"{row.id} {index}"}
            letter = "ABCD"[labels[group]]
            yield Item(f"{row.id}/{group}", group, letter, make, row.images[0], facts)

    def of_broken(self, item: Item) -> list[Item]:
        facts = {"question_id": item.id, "row": item.id}
        return [
            Item(f"{item.id}/{group}", group, None, item.make, item.image, facts)
            for group in self.chosen
        ]

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        return judge_letter(expected, answer)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        both: dict[str, dict[str, bool]] = defaultdict(dict)
        for row in rows:
            both[str(row.facts["row"])][row.group] = row.failed is None and bool(row.right)
        pairs = [several for several in both.values() if len(several) == 2]
        found: list[Score] = []
        if pairs:
            value, low, high = share(sum(all(pair.values()) for pair in pairs), len(pairs))
            failed = len({row.facts["row"] for row in rows if row.failed is not None})
            method = "answer and reason of the same row are right"
            found.append(
                Score(
                    "accuracy",
                    "Q->AR",
                    value,
                    len(pairs),
                    low,
                    high,
                    failed,
                    "share",
                    "task",
                    method,
                )
            )
        for group, title in _TITLES.items():
            several = [row for row in rows if row.group == group]
            if several:
                found += letter_scores(several, group=title, axis="task")
        return found
