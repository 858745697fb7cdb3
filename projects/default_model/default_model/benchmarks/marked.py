"""The default model's own benchmark: the questions of `marked.py`, run and scored like all others.

Data: a folder with `regions.jsonl`; only photos that training never saw, unless `everything` is asked
for. An answer is right if it equals the label exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vip_llava.evaluation.items import Benchmark, Item, Options, Row, Score, Verdict

from default_model.benchmarks.marked_questions import SEVERAL, VARIANTS, items_of
from default_model.scenes.marking import SHAPES
from default_model.scenes.photos import read_regions
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmarks.labels import label_scores
from vip_llava.evaluation.benchmarks.proportions import share_score
from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.evaluation.label_names import canonical
from vip_llava.prompting.prepare import Request

__all__ = ["Marked"]


class Marked(Benchmark):
    """Groups are the variants: shapes, `drawn`, `control`, and those about several marks."""

    name = "marked"
    about = "What is marked, and only because of the mark? The default model's validation"
    needs = "regions.jsonl and its photos"
    groups = VARIANTS
    max_new_tokens = 12  # the longest label has five, a mark's words up to ten

    def __init__(self, data: Path, options: Options) -> None:
        super().__init__(data, options)
        photos = [p for p in read_regions(data) if options.everything or is_validation(p.id)]
        if not photos:
            hint = "" if options.everything else "; --all takes every photo, not validation alone"
            raise DataError(f"{data} has no photos to ask about{hint}")
        if not any(photo.is_coco and photo.objects for photo in photos):
            raise DataError(
                f"{data}: no photo has things of COCO classes and promises all of them "
                '("exhaustive_for": ["coco80"]), which the questions are made of'
            )
        self.photos = photos

    def sources(self) -> Sequence[Path]:
        return [self.data / "regions.jsonl"]

    def items(self) -> list[Item]:
        found = []
        for variant in self.chosen:
            for item in items_of(self.photos, variant):
                facts = {"label": item.label, "place": item.id}
                image = item.id.partition("/")[0]
                make = _request(item.make)
                name = f"{variant}/{item.id}"
                found.append(Item(name, variant, item.answer, make, image, facts))
        return found

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        said = canonical(answer.strip().rstrip("."))
        right = said == canonical(str(expected))
        return Verdict(float(right), right, said)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        found: list[Score] = []
        for group in cls.groups:
            several = [row for row in rows if row.group == group]
            if several and group in SEVERAL:
                found.append(share_score("right", several, group=group, axis="several marks"))
            elif several:
                axis = "shape" if group in (*SHAPES, "control") else "geometry"
                found += label_scores(several, group=group, axis=axis)
        return found


def _request(make: Callable[[], Mapping[str, Any]]) -> Callable[[], Request]:
    return lambda: Request(**make())
