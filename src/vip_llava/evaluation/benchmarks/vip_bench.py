"""ViP-Bench (Cai et al., CVPR 2024): open questions about marks that the images already have.

Data: the published folder with `vip-bench-meta-data.json` (answers, capabilities) and, for each of
the splits `bbox` (drawn boxes and outlines) and `human` (drawn by hand), `questions.jsonl` and
`images/`. Open answers need a judge (`evaluation.judge`). Without one, the score here is the part
of the right answer's words that an answer contains, and it is named so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vip_llava.data.converters.base import read_json
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem, BenchmarkOptions, raising
from vip_llava.evaluation.benchmarks.pointqa import normalize_answer
from vip_llava.evaluation.intervals import mean
from vip_llava.evaluation.paths import path_inside
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score, count_failed
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request

__all__ = ["CAPABILITIES", "VipBench", "capability_scores", "full_id"]

#: The names of the six capabilities in the data -> in words.
CAPABILITIES = {
    "rec": "recognition",
    "ocr": "reading text",
    "know": "knowledge",
    "math": "math",
    "rel": "relations",
    "lang": "language",
}
_META = "vip-bench-meta-data.json"


class VipBench(Benchmark):
    """Both splits ask the same questions, each in the words of its own marks."""

    name = "vip-bench"
    about = "ViP-Bench: open questions about drawn marks, by capability (needs a judge)"
    needs = f"{_META} and the folders bbox and human"
    groups = ("bbox", "human")
    max_new_tokens = 1024

    def __init__(self, data: Path, options: BenchmarkOptions) -> None:
        super().__init__(data, options)
        if not (data / _META).is_file():
            raise DataError(f"{data} holds no {_META}, which {self.name} needs")
        self.splits = [name for name in self.chosen if self._questions(name).is_file()]
        missing = [name for name in options.groups if name not in self.splits]
        if missing or not self.splits:
            name = missing[0] if missing else self.groups[0]
            raise DataError(f"{self._questions(name)} does not exist, which {self.name} needs")
        self.meta: Mapping[str, Any] = read_json(data / _META)
        if not isinstance(self.meta, Mapping):
            raise DataError(f"{data / _META}: must be an object with a question for each id")

    def _questions(self, split: str) -> Path:
        return self.data / split / "questions.jsonl"

    def sources(self) -> Sequence[Path]:
        return [self.data / _META, *(self._questions(split) for split in self.splits)]

    def items(self) -> list[BenchmarkItem]:
        return [item for split in self.splits for item in self._items_of_split(split)]

    def _items_of_split(self, split: str) -> list[BenchmarkItem]:
        """An item for each id of the metadata, so that a missing question counts."""
        path = self._questions(split)
        questions: dict[str, Any] = {}
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                if line.strip():
                    value = json.loads(line)
                    questions[full_id(value["question_id"])] = value
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a question ({error})") from None
        unknown = [id for id in questions if id not in self.meta]
        if unknown:
            raise DataError(f"{path}: question {unknown[0]} is not in {_META}")
        return [self._item(split, id, questions.get(id)) for id in self.meta]

    def _item(self, split: str, id: str, question: Mapping[str, Any] | None) -> BenchmarkItem:
        meta, expected, image = self.meta[id], "", ""
        facts: dict[str, Any] = {"question_id": id, "capability": []}
        build: Callable[[], Request]
        try:
            expected = str(meta["answer"])
            facts["capability"] = sorted(str(each) for each in meta["capability"])
            if question is None:
                raise DataError(f"{self._questions(split)}: question {id} is missing")
            image, text = str(question["image"]), str(question["text"])
            facts |= {"question_id": question["question_id"], "question": text}
            folder = (self.options.images or self.data) / split / "images"
            build = _request_builder(folder, image, text)
        except (KeyError, TypeError) as error:
            where = f"{_META} or {self._questions(split)}: {id}"
            build = raising(DataError(f"{where}: {error} is missing"))
        except DataError as error:
            build = raising(error)
        return BenchmarkItem(f"{split}/{id}", split, expected, build, image, facts)

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        return AnswerScore(_contained(str(expected), answer))

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        return capability_scores(
            rows,
            {row.id: [row.score or 0.0] for row in rows},
            "words of the right answer found, NO JUDGE: not a ViP-Bench score",
            "words found",
        )

    @classmethod
    def export(cls, rows: Sequence[ResultRow], model: str) -> dict[str, str]:
        return {
            f"results/{model}-{split}.json": _results_file(rows, split)
            for split in cls.groups
            if any(row.group == split for row in rows)
        }


def full_id(id: Any) -> str:
    """ "v1_7" for the number 7 and for "v1_7"."""
    return str(id) if str(id).startswith("v1_") else f"v1_{id}"


def _request_builder(folder: Path, image: str, text: str) -> Callable[[], Request]:
    def build() -> Request:
        return Request(image=open_image(path_inside(folder, image)), question=text)

    return build


def _contained(expected: str, answer: str) -> float:
    """The proportion of the parts joined by <AND> that the answer contains; the best of <OR>."""
    said = f" {normalize_answer(answer)} "
    best = 0.0
    for choice in expected.split("<OR>"):
        parts = [part for each in choice.split("<AND>") if (part := normalize_answer(each))]
        if parts:
            best = max(best, sum(f" {part} " in said for part in parts) / len(parts))
    return best


def capability_scores(
    rows: Sequence[ResultRow],
    grades: Mapping[str, Sequence[float]],
    method: str,
    name: str = "score",
) -> list[Score]:
    """Totals, capabilities and their combinations for each split, as in the published tables.

    grades: id of a row -> its score 0..1 in each of the judge's runs; a row without any counts 0.
    """
    scores: list[Score] = []
    for split in VipBench.groups:
        asked = [row for row in rows if row.group == split]
        if not asked:
            continue
        for group, axis, several in _breakdown(asked):
            values = [fmean(grades.get(row.id) or [0.0]) for row in several]
            middle, low, high = mean(values)
            count, failed, title = len(several), count_failed(several), f"{name}, {split}"
            scores.append(
                Score(title, group, middle, count, low, high, failed, axis=axis, method=method)
            )
    return scores


def _breakdown(rows: Sequence[ResultRow]) -> list[tuple[str, str, list[ResultRow]]]:
    """Group, axis and rows: all; by each capability; by each exact combination of capabilities.

    The capabilities of the paper come first, and the most common combination. A row may need
    several capabilities.
    """
    needed = {row.id: list(row.facts["capability"]) for row in rows}
    named = {name for names in needed.values() for name in names}
    order = [*(name for name in CAPABILITIES if name in named), *sorted(named - set(CAPABILITIES))]
    combinations = Counter("+".join(names) for names in needed.values()).most_common()
    return [
        ("", "", list(rows)),
        *(
            (
                CAPABILITIES.get(name, name),
                "capability",
                [row for row in rows if name in needed[row.id]],
            )
            for name in order
        ),
        *(
            (name, "combination", [row for row in rows if "+".join(needed[row.id]) == name])
            for name, _ in combinations
        ),
    ]


def _results_file(rows: Sequence[ResultRow], split: str) -> str:
    """The published format: {"v1_0": answer, ...} by number; a failed row has an empty answer."""
    answers = {full_id(row.facts["question_id"]): row.answer for row in rows if row.group == split}
    ordered = sorted(answers, key=lambda id: [int(n) for n in re.findall(r"\d+", id)])
    return json.dumps({id: answers[id] for id in ordered}, indent=2) + "\n"
