"""ViP-Bench (Cai et al., CVPR 2024): open questions about marks that are on the images already.

Data: the published folder: `vip-bench-meta-data.json` (answers, capabilities) and, for each of the
splits `bbox` (drawn boxes and outlines) and `human` (drawn by hand), `questions.jsonl` and `images/`.
Answers are open, so they need a judge (`evaluation.judge`); what is scored here without one is how much
of the right answer's words an answer holds, and is called that.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vip_llava.data.converters.base import read_json
from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.benchmarks.pointqa import normal
from vip_llava.evaluation.benchmarks.proportions import failures
from vip_llava.evaluation.benchmarks.row_file import failing, inside
from vip_llava.evaluation.intervals import mean
from vip_llava.evaluation.items import Benchmark, Item, Options, Row, Score, Verdict
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request

__all__ = ["CAPABILITIES", "VipBench", "capability_scores", "full_name", "results_file"]

#: The six capabilities as the data names them -> in words.
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
    """Both splits ask the same questions in the words of their marks."""

    name = "vip-bench"
    about = "ViP-Bench: open questions about drawn marks, by capability (needs a judge)"
    needs = f"{_META} and the folders bbox and human"
    groups = ("bbox", "human")
    max_new_tokens = 1024

    def __init__(self, data: Path, options: Options) -> None:
        super().__init__(data, options)
        if not (data / _META).is_file():
            raise DataError(f"{data} holds no {_META}, which {self.name} needs")
        self.splits = [name for name in self.chosen if self._questions(name).is_file()]
        absent = [name for name in options.groups if name not in self.splits]
        if absent or not self.splits:
            name = absent[0] if absent else self.groups[0]
            raise DataError(f"{self._questions(name)} does not exist, which {self.name} needs")
        self.meta: Mapping[str, Any] = read_json(data / _META)
        if not isinstance(self.meta, Mapping):
            raise DataError(f"{data / _META}: an object of questions by id is expected")

    def _questions(self, split: str) -> Path:
        return self.data / split / "questions.jsonl"

    def sources(self) -> Sequence[Path]:
        return [self.data / _META, *(self._questions(split) for split in self.splits)]

    def items(self) -> list[Item]:
        return [item for split in self.splits for item in self._of_split(split)]

    def _of_split(self, split: str) -> list[Item]:
        """An item for each id of the metadata, so that a question that is missing counts."""
        path = self._questions(split)
        asked: dict[str, Any] = {}
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                if line.strip():
                    value = json.loads(line)
                    asked[full_name(value["question_id"])] = value
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: no question ({error})") from None
        strange = [name for name in asked if name not in self.meta]
        if strange:
            raise DataError(f"{path}: question {strange[0]} is not in {_META}")
        return [self._item(split, name, asked.get(name)) for name in self.meta]

    def _item(self, split: str, name: str, asked: Mapping[str, Any] | None) -> Item:
        known = self.meta[name]
        facts: dict[str, Any] = {"question_id": name, "capability": []}
        try:
            expected = str(known["answer"])
            facts["capability"] = sorted(str(each) for each in known["capability"])
            if asked is None:
                raise DataError(f"{self._questions(split)}: question {name} is missing")
            image, text = str(asked["image"]), str(asked["text"])
            facts["question_id"] = asked["question_id"]
        except (KeyError, TypeError) as error:
            problem = DataError(f"{_META} or {self._questions(split)}: {name}: no {error}")
            return Item(f"{split}/{name}", split, "", failing(problem), "", facts)
        except DataError as error:
            return Item(f"{split}/{name}", split, expected, failing(error), "", facts)
        facts["question"] = text
        folder = (self.options.images or self.data) / split / "images"
        make = _make(folder, image, text)
        return Item(f"{split}/{name}", split, expected, make, image, facts)

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        return Verdict(_held(str(expected), answer))

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        return capability_scores(
            rows,
            {row.id: [row.score or 0.0] for row in rows},
            "words of the right answer found, NO JUDGE: not a ViP-Bench score",
            "words found",
        )

    @classmethod
    def files(cls, rows: Sequence[Row], model: str) -> dict[str, str]:
        return {
            f"results/{model}-{split}.json": results_file(rows, split)
            for split in cls.groups
            if any(row.group == split for row in rows)
        }


def full_name(name: Any) -> str:
    """ "v1_7" of the number 7 or of "v1_7"."""
    return str(name) if str(name).startswith("v1_") else f"v1_{name}"


def _make(folder: Path, image: str, text: str) -> Callable[[], Request]:
    def build() -> Request:
        return Request(image=open_image(inside(folder, image)), question=text)

    return build


def _held(expected: str, answer: str) -> float:
    """The share of what <AND> joins that the answer holds as words; of <OR> the best one."""
    said = f" {normal(answer)} "
    shares = []
    for choice in expected.split("<OR>"):
        parts = [normal(part) for part in choice.split("<AND>")]
        parts = [part for part in parts if part]
        shares.append(sum(f" {part} " in said for part in parts) / len(parts) if parts else 0.0)
    return max(shares)


def capability_scores(
    rows: Sequence[Row],
    grades: Mapping[str, Sequence[float]],
    method: str,
    name: str = "score",
) -> list[Score]:
    """Totals, capabilities and combinations of them for each split, as the published tables have them.

    grades: for each row the score 0..1 of each of the judge's runs; a row without any counts as 0.
    """
    found: list[Score] = []
    for split in VipBench.groups:
        asked = [row for row in rows if row.group == split]
        if not asked:
            continue
        parts = [("", "", asked), *_by_capability(asked), *_by_combination(asked)]
        for group, axis, several in parts:
            values = [_mean(grades.get(row.id, ())) for row in several]
            middle, low, high = mean(values)
            failed, title = failures(several), f"{name}, {split}"
            found.append(
                Score(title, group, middle, len(several), low, high, failed, "share", axis, method)
            )
    return found


Part = tuple[str, str, list[Row]]


def _by_capability(rows: Sequence[Row]) -> list[Part]:
    """The rows that need each capability, those of the paper first; a row may be in several."""
    named = {name for row in rows for name in row.facts["capability"]}
    order = [*(name for name in CAPABILITIES if name in named), *sorted(named - set(CAPABILITIES))]
    return [
        (
            CAPABILITIES.get(name, name),
            "capability",
            [row for row in rows if name in row.facts["capability"]],
        )
        for name in order
    ]


def _by_combination(rows: Sequence[Row]) -> list[Part]:
    """The rows that need exactly the same capabilities, the most common combination first."""
    together = Counter("+".join(row.facts["capability"]) for row in rows)
    return [
        (name, "combination", [row for row in rows if "+".join(row.facts["capability"]) == name])
        for name, _ in together.most_common()
    ]


def results_file(rows: Sequence[Row], split: str) -> str:
    """The published output format: {"v1_0": answer, ...}; a row that failed has an empty answer."""
    answers = {
        full_name(row.facts["question_id"]): row.answer for row in rows if row.group == split
    }
    ordered = sorted(answers, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    if not answers:
        raise RequestError(f"the run has no answers of the split {split}")
    return json.dumps({name: answers[name] for name in ordered}, indent=2) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
