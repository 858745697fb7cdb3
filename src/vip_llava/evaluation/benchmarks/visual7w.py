"""Visual7W pointing (Zhu et al., CVPR 2016): which of four marked boxes answers the question?

Data: `v7w-test.json` as the original publishes it, rows of kind v7w with images beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vip_llava.data.region_rows import V7wRow
from vip_llava.evaluation.benchmark import BenchmarkItem
from vip_llava.evaluation.benchmarks.proportions import letter_scores
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.choices import score_letter
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score

__all__ = ["Visual7W"]


class Visual7W(RowBenchmark):
    """Four boxes in named colours are the options A to D; chance is one in four."""

    name = "visual7w"
    about = "Visual7W pointing: which of four marked boxes is it?"
    needs = "v7w-test.json and its images"
    kind = "v7w"
    file_patterns = ("v7w-test.json", "v7w_test.json", "v7w*test*.json*", "v7w*.json*")

    def items_of_row(self, row: V7wRow, index: int) -> Iterator[BenchmarkItem]:
        letter = "ABCD"[row.bboxes.index(row.answer)]
        yield BenchmarkItem(row.id, "", letter, self.request_builder(index), row.images[0])

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        return score_letter(expected, answer)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        return letter_scores(rows)
