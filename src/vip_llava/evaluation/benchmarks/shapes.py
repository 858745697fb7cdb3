"""Shapes: one question about the same things, pointed at with eight shapes, nine colours, three widths.

Made from any COCO-style file. Groups: the eight shapes in red with the drawing's own looks; `color-NAME`
a box in another colour; `width-N` a red box with another line; and `control`, the same words with
nothing drawn and no geometry: what is guessed. A score says something only beside the control.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vip_llava.data.scenes.marking import SHAPES
from vip_llava.data.scenes.photos import Thing
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmarks.labels import judge_label, label_scores
from vip_llava.evaluation.benchmarks.row_file import failing
from vip_llava.evaluation.coco_annotations import Broken, Subject, read_things
from vip_llava.evaluation.items import Benchmark, Item, Options, Row, Score, Verdict
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request
from vip_llava.regions import PALETTE, Point, Region, resolve
from vip_llava.regions.phrases import expand
from vip_llava.regions.sampling import sample_region

__all__ = ["QUESTION", "Recognition", "Shapes", "pointed"]

QUESTION = "What is <region:1>?"
_COLORS = tuple(f"color-{name}" for name in PALETTE if name != "red")
_WIDTHS = ("width-1", "width-4", "width-8")


class Shapes(Benchmark):
    """Every thing is asked about once in each group."""

    name = "shapes"
    about = "What is marked? Eight shapes, colours, widths, and a control without a mark"
    needs = "COCO instances (instances*.json) or regions.jsonl, and its photos"
    groups = (*SHAPES, *_COLORS, *_WIDTHS, "control")
    max_new_tokens = 16

    def __init__(self, data: Path, options: Options) -> None:
        super().__init__(data, options)
        self.listing, self.subjects = read_things(
            data, options.images, everything=options.everything, name=self.name
        )
        if not any(subject.things for subject in self.subjects):
            hint = "" if options.everything else "; --all asks about photos outside validation too"
            raise DataError(f"{self.listing} has no things to ask about{hint}")

    def sources(self) -> Sequence[Path]:
        return [self.listing]

    def items(self) -> list[Item]:
        places = [(subject, i) for subject in self.subjects for i in range(len(subject.things))]
        return [self._item(subject, i, group) for group in self.chosen for subject, i in places]

    def _item(self, subject: Subject, index: int, group: str) -> Item:
        thing, name = subject.things[index], f"{subject.id}/{index}"
        image = subject.image.name
        if isinstance(thing, Broken):
            facts: dict[str, Any] = {"label": "", "side": 0}
            broken = failing(DataError(f"{self.listing.name}: {thing.reason}"))
            return Item(f"{group}/{name}", group, "", broken, image, facts)
        x1, y1, x2, y2 = thing.box
        facts = {"label": thing.label, "side": round(max(x2 - x1, y2 - y1), 1), "thing": name}
        make = self._make(subject, thing, name, group)
        return Item(f"{group}/{name}", group, thing.label, make, image, facts)

    def _make(self, subject: Subject, thing: Thing, name: str, group: str) -> Callable[[], Request]:
        question = self.options.question or QUESTION

        def build() -> Request:
            photo = open_image(subject.image)
            if photo.size != subject.size:
                raise DataError(
                    f"{subject.image.name} is {photo.size[0]} x {photo.size[1]} pixels, but "
                    f"{self.listing.name} says {subject.size[0]} x {subject.size[1]}"
                )
            region = pointed(thing, photo.size, group, f"{self.options.seed}/{name}")
            if group == "control":
                words = expand(question, resolve([region], photo.size).regions)
                return Request(image=photo, question=words)
            return Request(image=photo, question=question, regions=[region])

        return build

    @classmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        return judge_label(expected, answer)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        axes = {"color": "colour", "width": "width"}
        found: list[Score] = []
        for group in cls.groups:
            several = [row for row in rows if row.group == group]
            if several:
                axis = axes.get(group.partition("-")[0], "shape")
                found += label_scores(several, group=group, axis=axis)
        return found


class Recognition(Shapes):
    """Only the red box, with the scores broken down by the size of the thing."""

    name = "recognition"
    about = "What is in the red box? Any COCO-style file, by label and by size"
    groups = ("box",)

    @classmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        return label_scores(rows, sizes=True)


def pointed(thing: Thing, size: tuple[int, int], group: str, name: str) -> Region:
    """The mark of a group on a thing; where it lies on the thing is drawn by lot from `name`.

    Colours, widths and the control use the box, so that they differ from it in nothing else.
    """
    shape = group if group in SHAPES else "box"
    dice = random.Random(f"shapes/{shape}/{name}")
    kind, _, what = group.partition("-")
    color = what if kind == "color" else "red"
    region = sample_region(
        thing.box, thing.polygons, size=size, rng=dice, shape=shape, color=color, style="constant"
    )
    # The drawing's own opacity, width and radius: a mark as a person gets it who says nothing more.
    looks: dict[str, Any] = {"alpha": None, "width": int(what) if kind == "width" else None}
    if isinstance(region, Point):
        looks["radius"] = None
    return region.changed(**looks, id="1")
