"""Marked things: does the model say what the mark points at, and only because of the mark?

Questions about labelled things of photos that training never saw. Variants of one question: each of
the eight shapes in red; `drawn` (the mark is on the image, the model gets no geometry); `control`
(the same words, nothing drawn, no geometry); and for several marks `four` (which of four marked
things is the ...?), `sides` (left or right, above or below?), `furthest` (which of two is further left,
which of three or four is the lowest, ...?), `larger` (which of two?) and `count` (how many are
marked: two, three or four?). Answers are greedy and must equal the label. Geometry comes from one seed for each question, so a score can be had again. It
deliberately does not know the model: it makes requests and judges answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from default_model.scenes.marking import SHAPES
from default_model.scenes.photos import Photo
from default_model.scenes.questions import choosing, marks, relations
from default_model.scenes.scene import Scene, Task, overlap
from vip_llava.errors import RequestError
from vip_llava.evaluation.coco_annotations import LabelledObject
from vip_llava.evaluation.label_names import canonical
from vip_llava.regions import PALETTE, Point, Region, draw, resolve
from vip_llava.regions.phrases import expand
from vip_llava.regions.sampling import sample_region

NAMING = "What is <region:1>?"
# Of several marks: how many they may be, by turns, and what is asked.
_SEVERAL: dict[str, tuple[tuple[int, ...], Task]] = {
    "four": ((4,), choosing.choose_region),
    "sides": ((2,), relations.side),
    "furthest": ((2, 3, 4), relations.further),
    "larger": ((2,), relations.larger),
    "count": ((2, 3, 4), marks.count_marks),
}
SEVERAL = tuple(_SEVERAL)
"""Variants about several marks."""
VARIANTS = (*SHAPES, "drawn", "control", *SEVERAL)


@dataclass(frozen=True, slots=True)
class Item:
    """One question: how its request for `Assistant.ask_many` is made, and the right answer."""

    id: str
    label: str
    make: Callable[[], Mapping[str, Any]] = field(repr=False)
    answer: str

    @property
    def request(self) -> Mapping[str, Any]:
        """The request, made anew: drawn images of many items would fill the memory."""
        return self.make()


def naming_items(photos: Iterable[Photo], variant: str, *, most: int | None = None) -> list[Item]:
    """One item for each thing of a COCO class; at most `most`, evenly spread.

    Raises RequestError for an unknown variant.
    """
    if variant not in (*SHAPES, "drawn", "control"):
        raise RequestError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    places = [(p, i) for p in photos if p.is_coco for i in range(len(p.objects))]
    items = []
    for photo, index in _spread(places, most):
        thing = photo.objects[index]
        name = f"{photo.id}/{index}"
        items.append(Item(name, thing.label, partial(_naming, photo, index, variant), thing.label))
    return items


def _naming(photo: Photo, index: int, variant: str) -> dict[str, Any]:
    shape = variant if variant in SHAPES else "box"
    region = red_mark(photo.objects[index], photo.size, shape, f"{photo.id}/{index}")
    if variant not in ("drawn", "control"):
        return {"image": photo.jpeg, "question": NAMING, "regions": [region]}
    resolved = resolve([region], photo.size).regions
    image = draw(photo.open(), resolved) if variant == "drawn" else photo.jpeg
    return {"image": image, "question": expand(NAMING, resolved)}


def red_mark(thing: LabelledObject, size: tuple[int, int], shape: str, name: str) -> Region:
    """A red mark of the drawing defaults; where it lies on the thing is drawn by lot from `name`."""
    if shape == "box":
        dice = random.Random(0)
        region = sample_region(thing.box, None, size=size, rng=dice, shape="box", color="red")
    else:
        dice = random.Random(f"marked/{shape}/{name}")
        region = sample_region(
            thing.box, thing.polygons, size=size, rng=dice, shape=shape, color="red"
        )
    looks: dict[str, None] = {"radius": None} if isinstance(region, Point) else {}
    return region.changed(alpha=None, width=None, id="1", **looks)


def several_items(photos: Iterable[Photo], variant: str, *, most: int | None = None) -> list[Item]:
    """Questions about several marked things of one COCO photo, up to four of a photo."""
    counts, task = _SEVERAL[variant]
    items = []
    for photo, attempt in ((p, a) for p in photos if p.is_coco for a in range(4)):
        count = counts[attempt % len(counts)]
        name = f"{photo.id}/{variant}/{attempt}"
        rng = np.random.default_rng(list(name.encode()))
        marked = _apart(photo.objects, count, rng)
        if marked is None:
            continue
        regions = [
            red_mark(thing, photo.size, "box", name).changed(color=color, id=str(i))
            for i, (thing, color) in enumerate(zip(marked, PALETTE, strict=False), 1)
        ]
        resolved = resolve(regions, photo.size).regions
        # Tasks look at boxes, words and ids only; the image is opened by the assistant.
        scene = Scene(Image.new("RGB", photo.size), photo.objects, tuple(marked), resolved)
        exchange = task(scene, rng)
        if exchange is None or (variant == "four" and len(exchange[1]) > 1):  # letters only
            continue
        question, answer = exchange[0], expand(exchange[1], resolved)
        request = {"image": photo.jpeg, "question": question, "regions": regions}
        items.append(Item(name, answer, partial(dict, request), answer))
    return list(_spread(items, most))


def _apart(
    things: Sequence[LabelledObject], count: int, rng: np.random.Generator
) -> list[LabelledObject] | None:
    chosen: list[LabelledObject] = []
    for index in rng.permutation(len(things)).tolist():
        thing = things[index]
        fresh = all(t.label != thing.label for t in chosen) or count == 2
        if len(chosen) < count and fresh and all(overlap(thing.box, t.box) < 0.4 for t in chosen):
            chosen.append(thing)
    return chosen if len(chosen) == count else None


def _spread(rows: Sequence[Any], most: int | None) -> Sequence[Any]:
    if most is None or len(rows) <= most:
        return rows
    return [rows[i * len(rows) // most] for i in range(most)]


def items_of(photos: Sequence[Photo], variant: str, most: int | None = None) -> list[Item]:
    """The items of any variant. Raises RequestError for an unknown one."""
    build: Callable[..., list[Item]] = several_items if variant in SEVERAL else naming_items
    return build(photos, variant, most=most)


def is_right(item: Item, answer: str) -> bool:
    """Exact comparison, both lower case, synonyms merged, no full stop at the end."""
    return canonical(answer.strip().rstrip(".")) == canonical(item.answer)
