"""RefCOCOg region captioning: describe the marked object, compared with what people wrote.

Data: a file of the original's refcocog rows (`vip-llava data convert refcocog` makes one). Rows
about the same object of the same image are one question with several references. Scores: CIDEr-D
and METEOR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vip_llava.data.region_rows import RefcocogRow
from vip_llava.evaluation.benchmark import BenchmarkItem
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.intervals import mean
from vip_llava.evaluation.metrics.cider import cider
from vip_llava.evaluation.metrics.meteor import meteor
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score, count_failed

__all__ = ["RefCocoG"]


class RefCocoG(RowBenchmark):
    """One short phrase for each marked object."""

    name = "refcocog"
    about = "RefCOCOg region captioning: CIDEr and METEOR"
    needs = "a file of refcocog rows and its images"
    kind = "refcocog"
    file_patterns = ("refcocog-val.json*", "refcocog*val*.json*", "refcocog*.json*")

    def items_of_row(self, row: RefcocogRow, index: int) -> Iterator[BenchmarkItem]:
        facts = {"place": f"{row.images[0]} {list(row.bboxes)}"}
        build = self.request_builder(index)
        yield BenchmarkItem(row.id, "", [row.answer], build, row.images[0], facts)

    def items(self) -> list[BenchmarkItem]:
        """One item for each object, with the question of its first row."""
        first: dict[str, BenchmarkItem] = {}
        for item in super().items():
            key = str(item.facts.get("place", item.id))
            if key in first:
                first[key].expected.extend(item.expected)
            else:
                first[key] = item
        return list(first.values())

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        return AnswerScore(None)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        answers = [row.answer for row in rows]
        references = [row.expected or [""] for row in rows]
        images, failed = [row.image for row in rows], count_failed(rows)
        meteor_scores = meteor(answers, references)
        scores = []
        for name, values, method in (
            ("CIDEr", cider(answers, references), "CIDEr-D over these questions"),
            (meteor_scores.name, meteor_scores.values, meteor_scores.method),
        ):
            value, low, high = mean(values, images)
            scores.append(Score(name, "", value, len(rows), low, high, failed, method=method))
        return scores
