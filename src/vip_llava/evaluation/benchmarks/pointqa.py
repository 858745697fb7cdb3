"""PointQA LookTwice (Mani et al., 2020): how many things are like the one in the red box?

Data: `pointQA_twice_test.json` as the original publishes it. The original's program compares an
answer with the first character of the right one, so that "1" passes for "10"; here the whole number
is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vip_llava.data.region_rows import PointQaTwiceRow
from vip_llava.evaluation.benchmark import BenchmarkItem
from vip_llava.evaluation.benchmarks.proportions import proportion_score
from vip_llava.evaluation.benchmarks.row_file import RowBenchmark
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score

__all__ = ["PointQa", "normalize_answer"]

_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS.split())}


class PointQa(RowBenchmark):
    """The right answer is a word or a number, in most rows a number from 1 to 5."""

    name = "pointqa"
    about = "PointQA LookTwice: how many are like the marked one?"
    needs = "pointQA_twice_test.json and its images"
    kind = "pointQA_twice"
    file_patterns = ("pointQA_twice_test.json", "pointQA*test*.json*", "pointQA*.json*")

    def items_of_row(self, row: PointQaTwiceRow, index: int) -> Iterator[BenchmarkItem]:
        yield BenchmarkItem(row.id, "", row.answer, self.request_builder(index), row.images[0])

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        """Right if the answer is the expected one, or names its number and no other number."""
        wanted = normalize_answer(str(expected))
        said = normalize_answer(answer)
        numbers = set(re.findall(r"\b\d+\b", said))
        read = numbers.pop() if wanted.isdigit() and len(numbers) == 1 else said
        return AnswerScore(float(read == wanted), read == wanted, read)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        return [
            proportion_score("accuracy", rows, method="number parsed from the answer"),
            proportion_score(
                "accuracy, exact",
                rows,
                method="the answer is the word or number and nothing else",
                right=lambda row: row.answer.strip().lower() == str(row.expected).strip().lower(),
            ),
        ]


def normalize_answer(text: str) -> str:
    """Words in lower case without punctuation and articles, numbers up to twenty as digits."""
    words = re.findall(r"[\w']+", text.lower())
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))
