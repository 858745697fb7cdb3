"""The default model's benchmark: the questions of `marked_questions` about photos of its data.

Data: a folder with `regions.jsonl`. Only photos of the validation split are asked about, unless
`all_photos` is set. An answer is right if it equals the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from default_model.benchmarks.marked_questions import GROUPS, SEVERAL_MARKS, marked_items
from default_model.scenes.marking import SHAPES
from default_model.scenes.photos import read_regions
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem, BenchmarkOptions
from vip_llava.evaluation.benchmarks.labels import label_scores
from vip_llava.evaluation.benchmarks.proportions import proportion_score
from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.evaluation.label_names import canonical
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score

__all__ = ["Marked"]


class Marked(Benchmark):
    """Groups: shapes, `drawn`, `control`, and those about several marks."""

    name = "marked"
    about = "What is marked, and only because of the mark? The default model's validation"
    needs = "regions.jsonl and its photos"
    groups = GROUPS
    max_new_tokens = 12  # the longest label has five tokens, the words of a mark up to ten

    def __init__(self, data: Path, options: BenchmarkOptions) -> None:
        super().__init__(data, options)
        photos = [p for p in read_regions(data) if options.all_photos or is_validation(p.id)]
        if not photos:
            hint = "" if options.all_photos else "; --all also takes photos outside validation"
            raise DataError(f"{data} has no photos to ask about{hint}")
        if not any(photo.is_coco and photo.objects for photo in photos):
            raise DataError(
                f"{data}: no photo has objects and says that all COCO classes are labelled "
                '("exhaustive_for": ["coco80"]), which the questions need'
            )
        self.photos = photos

    def sources(self) -> Sequence[Path]:
        return [self.data / "regions.jsonl"]

    def items(self) -> list[BenchmarkItem]:
        return [item for group in self.chosen for item in marked_items(self.photos, group)]

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        label = canonical(answer.strip().rstrip("."))
        right = label == canonical(str(expected))
        return AnswerScore(float(right), right, label)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        scores: list[Score] = []
        for group in cls.groups:
            several = [row for row in rows if row.group == group]
            if several and group in SEVERAL_MARKS:
                scores.append(proportion_score("right", several, group=group, axis="several marks"))
            elif several:
                axis = "shape" if group in (*SHAPES, "control") else "geometry"
                scores += label_scores(several, group=group, axis=axis)
        return scores
