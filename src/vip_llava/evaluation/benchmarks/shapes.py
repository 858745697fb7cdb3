"""One question about the same objects, pointed at with eight shapes, nine colours, three widths.

Made from any COCO-style file. Groups: the eight shapes in red with the default style; `color-NAME`,
a box in another colour; `width-N`, a red box with another line width; and `control`, the same words
with nothing drawn and no geometry. The control measures what can be guessed; a score means something
only in comparison with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vip_llava.errors import DataError
from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem, BenchmarkOptions, raising
from vip_llava.evaluation.benchmarks.labels import label_scores, score_label, size_scores
from vip_llava.evaluation.coco_annotations import (
    AnnotatedImage,
    InvalidAnnotation,
    LabelledObject,
    read_annotations,
)
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request
from vip_llava.regions import PALETTE, Point, Region, resolve
from vip_llava.regions.phrases import expand
from vip_llava.regions.sampling import TRAINED_SHAPES, sample_region

__all__ = ["Recognition", "Shapes"]

_QUESTION = "What is <region:1>?"
_COLORS = tuple(f"color-{name}" for name in PALETTE if name != "red")
_WIDTHS = ("width-1", "width-4", "width-8")
_AXES = {"color": "colour", "width": "width"}


class Shapes(Benchmark):
    """Asks about every object once in each group."""

    name = "shapes"
    about = "What is marked? Eight shapes, colours, widths, and a control without a mark"
    needs = "COCO instances (instances*.json) or regions.jsonl, and its photos"
    groups = (*TRAINED_SHAPES, *_COLORS, *_WIDTHS, "control")
    max_new_tokens = 16

    def __init__(self, data: Path, options: BenchmarkOptions) -> None:
        super().__init__(data, options)
        self.listing, self.photos = read_annotations(
            data, options.images, all_photos=options.all_photos, name=self.name
        )
        if not any(photo.objects for photo in self.photos):
            hint = "" if options.all_photos else "; --all also takes photos outside validation"
            raise DataError(f"{self.listing} has no objects to ask about{hint}")

    def sources(self) -> Sequence[Path]:
        return [self.listing]

    def items(self) -> list[BenchmarkItem]:
        places = [(photo, i) for photo in self.photos for i in range(len(photo.objects))]
        return [self._item(photo, i, group) for group in self.chosen for photo, i in places]

    def _item(self, photo: AnnotatedImage, index: int, group: str) -> BenchmarkItem:
        target, key = photo.objects[index], f"{photo.id}/{index}"
        if isinstance(target, InvalidAnnotation):
            label, side = "", 0.0
            build: Callable[[], Request] = raising(
                DataError(f"{self.listing.name}: {target.reason}")
            )
        else:
            x1, y1, x2, y2 = target.box
            label, side = target.label, round(max(x2 - x1, y2 - y1), 1)
            build = self._request_builder(photo, target, key, group)
        facts = {"label": label, "side": side, "thing": key}
        return BenchmarkItem(f"{group}/{key}", group, label, build, photo.path.name, facts)

    def _request_builder(
        self, annotated: AnnotatedImage, target: LabelledObject, key: str, group: str
    ) -> Callable[[], Request]:
        question = self.options.question or _QUESTION

        def build() -> Request:
            photo = open_image(annotated.path)
            if photo.size != annotated.size:
                raise DataError(
                    f"{annotated.path.name} is {photo.size[0]} x {photo.size[1]} pixels, but "
                    f"{self.listing.name} says {annotated.size[0]} x {annotated.size[1]}"
                )
            region = _mark(target, photo.size, group, f"{self.options.seed}/{key}")
            if group == "control":
                words = expand(question, resolve([region], photo.size).regions)
                return Request(image=photo, question=words)
            return Request(image=photo, question=question, regions=[region])

        return build

    @classmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        return score_label(expected, answer)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        scores: list[Score] = []
        for group in cls.groups:
            several = [row for row in rows if row.group == group]
            if several:
                axis = _AXES.get(group.partition("-")[0], "shape")
                scores += label_scores(several, group=group, axis=axis)
        return scores


class Recognition(Shapes):
    """Asks with the red box only, and breaks the scores down by the size of the object."""

    name = "recognition"
    about = "What is in the red box? Any COCO-style file, by label and by size"
    groups = ("box",)

    @classmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        return [*label_scores(rows), *size_scores(rows)]


def _mark(target: LabelledObject, size: tuple[int, int], group: str, seed: str) -> Region:
    """The mark of a group on an object; `seed` decides where on the object it is.

    Colours, widths and the control use the box, so that they differ from it in nothing else.
    """
    shape = group if group in TRAINED_SHAPES else "box"
    dice = random.Random(f"shapes/{shape}/{seed}")
    kind, _, value = group.partition("-")
    region = sample_region(
        target.box,
        target.polygons,
        size=size,
        rng=dice,
        shape=shape,
        color=value if kind == "color" else "red",
        style="constant",
    )
    # The default style, as a user gets it who gives only a shape.
    style: dict[str, Any] = {"alpha": None, "width": int(value) if kind == "width" else None}
    if isinstance(region, Point):
        style["radius"] = None
    return region.changed(**style, id="1")
