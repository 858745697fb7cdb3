"""RefCOCOg region captioning: describe the marked thing, compared with what people said of it.

Data: a file of the original's refcocog rows (`vip-llava data convert refcocog` makes one). Rows about
the same thing of the same image are one question with several references. Scores: CIDEr-D and METEOR.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vip_llava.data.region_rows import RefcocogRow
from vip_llava.evaluation.benchmarks.proportions import failures
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.intervals import mean
from vip_llava.evaluation.items import Item, Row, Score, Verdict
from vip_llava.evaluation.metrics.cider import cider
from vip_llava.evaluation.metrics.meteor import meteor

__all__ = ["RefCocoG"]


class RefCocoG(RowBenchmark):
    """One short phrase for each marked thing."""

    name = "refcocog"
    about = "RefCOCOg region captioning: CIDEr and METEOR"
    needs = "a file of refcocog rows and its images"
    kind = "refcocog"
    files_of = ("refcocog-val.json*", "refcocog*val*.json*", "refcocog*.json*")
    max_new_tokens = 128

    def of_row(self, row: RefcocogRow, index: int) -> Iterator[Item]:
        facts = {"place": f"{row.images[0]} {list(row.bboxes)}"}
        yield Item(row.id, "", [row.answer], self.make(index), row.images[0], facts)

    def items(self) -> list[Item]:
        """One item for each thing; it is asked as its first row is."""
        first: dict[str, Item] = {}
        for item in super().items():
            key = str(item.facts.get("place", item.id))
            if key in first:
                first[key].expected.extend(item.expected)
            else:
                first[key] = item
        return list(first.values())

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        return Verdict(None)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        answers = [row.answer for row in rows]
        references = [row.expected or [""] for row in rows]
        images = [row.image for row in rows]
        judge = meteor()
        found = []
        for name, values, method in (
            ("CIDEr", cider(answers, references), "CIDEr-D over the asked things"),
            (judge.name, judge.each(answers, references), judge.method),
        ):
            value, low, high = mean(values, images)
            found.append(
                Score(name, "", value, len(rows), low, high, failures(rows), method=method)
            )
        return found
