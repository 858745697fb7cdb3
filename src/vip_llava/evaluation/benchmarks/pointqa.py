"""PointQA LookTwice (Mani et al., 2020): how many things are like the one in the red box?

Data: `pointQA_twice_test.json` as the original publishes it. The original's own program compares an
answer with the first character of the right one, so "10" passes for "1"; here it is the whole number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vip_llava.data.region_rows import PointQaTwiceRow
from vip_llava.evaluation.benchmarks.proportions import share_score
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.items import Item, Row, Score, Verdict

__all__ = ["PointQa", "normal"]

_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty
"""
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS.split())}


class PointQa(RowBenchmark):
    """The right answer is a word or a number, most of them numbers from 1 to 5."""

    name = "pointqa"
    about = "PointQA LookTwice: how many are like the marked one?"
    needs = "pointQA_twice_test.json and its images"
    kind = "pointQA_twice"
    files_of = ("pointQA_twice_test.json", "pointQA*test*.json*", "pointQA*.json*")
    max_new_tokens = 128

    def of_row(self, row: PointQaTwiceRow, index: int) -> Iterator[Item]:
        yield Item(row.id, "", row.answer, self.make(index), row.images[0])

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        """Right if it says the same, or names the right number and no other one."""
        wanted = normal(str(expected))
        said = normal(answer)
        numbers = set(re.findall(r"\b\d+\b", said))
        read = numbers.pop() if wanted.isdigit() and len(numbers) == 1 else said
        right = read == wanted
        return Verdict(float(right), right, read)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        return [
            share_score("accuracy", rows, method="number read from the answer"),
            share_score(
                "accuracy, exact",
                rows,
                method="the answer is the word or number and nothing else",
                right=lambda row: row.answer.strip().lower() == str(row.expected).strip().lower(),
            ),
        ]


def normal(text: str) -> str:
    """Lower case words without punctuation and articles, numbers up to twenty as digits."""
    words = re.findall(r"[\w']+", text.lower())
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))
