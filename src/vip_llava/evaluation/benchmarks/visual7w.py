"""Visual7W pointing (Zhu et al., CVPR 2016): which of four marked boxes answers the question?

Data: `v7w-test.json` as the original publishes it, rows of kind v7w with images beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vip_llava.data.region_rows import V7wRow
from vip_llava.evaluation.benchmarks.proportions import letter_scores
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.choices import judge_letter
from vip_llava.evaluation.items import Item, Row, Score, Verdict

__all__ = ["Visual7W"]


class Visual7W(RowBenchmark):
    """Four boxes in named colours are the options A to D; chance is one in four."""

    name = "visual7w"
    about = "Visual7W pointing: which of four marked boxes is it?"
    needs = "v7w-test.json and its images"
    kind = "v7w"
    files_of = ("v7w-test.json", "v7w_test.json", "v7w*test*.json*", "v7w*.json*")
    max_new_tokens = 128

    def of_row(self, row: V7wRow, index: int) -> Iterator[Item]:
        letter = "ABCD"[row.bboxes.index(row.answer)]
        yield Item(row.id, "", letter, self.make(index), row.images[0])

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        return judge_letter(expected, answer)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        return letter_scores(rows)
