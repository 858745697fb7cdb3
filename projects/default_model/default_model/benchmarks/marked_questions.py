"""Questions about marked objects: does the model name what the mark points at, because of the mark?

The objects are those of photos in which all COCO classes are labelled. Groups about one object: the
eight shapes in red; `drawn` (the mark is drawn, but the model gets no geometry); `control` (the
same words, nothing drawn, no geometry). Groups about several marks: `four` (which of four marked
objects is the ...?), `sides` (left or right, above or below?), `furthest` (which of two to four is
further left, lowest, ...?), `larger` (which of two?) and `count` (two, three or four marks?).

Each question has its own seed, so it is always the same. It does not know models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from default_model.scenes.marking import SHAPES
from default_model.scenes.photos import Photo
from default_model.scenes.questions import choosing, marks, relations
from default_model.scenes.scene import Scene, Task, overlap
from vip_llava.errors import RequestError
from vip_llava.evaluation.benchmark import BenchmarkItem
from vip_llava.evaluation.coco_annotations import LabelledObject
from vip_llava.prompting.prepare import Request
from vip_llava.regions import PALETTE, Point, Region, draw, resolve
from vip_llava.regions.phrases import expand
from vip_llava.regions.sampling import sample_region

__all__ = ["GROUPS", "NAMING", "SEVERAL_MARKS", "marked_items"]

NAMING = "What is <region:1>?"
#: Group -> the numbers of marks, taken in turn, and the question.
_SEVERAL: dict[str, tuple[tuple[int, ...], Task]] = {
    "four": ((4,), choosing.choose_region),
    "sides": ((2,), relations.side),
    "furthest": ((2, 3, 4), relations.further),
    "larger": ((2,), relations.larger),
    "count": ((2, 3, 4), marks.count_marks),
}
SEVERAL_MARKS = tuple(_SEVERAL)
GROUPS = (*SHAPES, "drawn", "control", *SEVERAL_MARKS)
_QUESTIONS_PER_PHOTO = 4  # of a group about several marks


def marked_items(photos: Sequence[Photo], group: str) -> list[BenchmarkItem]:
    """The items of a group. Facts: the `label` of the object and its `place`, the same in all groups.

    Raises RequestError for an unknown group.
    """
    if group not in GROUPS:
        raise RequestError(f"unknown group {group!r}; known: {', '.join(GROUPS)}")
    build = _several_items if group in _SEVERAL else _naming_items
    return [item for photo in photos if photo.is_coco for item in build(photo, group)]


def _item(
    photo: Photo, group: str, place: str, label: str, build: Callable[[], Request]
) -> BenchmarkItem:
    facts = {"label": label, "place": place}
    return BenchmarkItem(f"{group}/{place}", group, label, build, photo.id, facts)


def _naming_items(photo: Photo, group: str) -> Iterator[BenchmarkItem]:
    """An item for each object of a photo."""
    for index, target in enumerate(photo.objects):
        place = f"{photo.id}/{index}"
        build = partial(_naming_request, photo, target, group, place)
        yield _item(photo, group, place, target.label, build)


def _naming_request(photo: Photo, target: LabelledObject, group: str, place: str) -> Request:
    region = _red_mark(target, photo.size, group if group in SHAPES else "box", place)
    if group not in ("drawn", "control"):
        return Request(image=photo.jpeg, question=NAMING, regions=[region])
    resolved = resolve([region], photo.size).regions
    image = draw(photo.open(), resolved) if group == "drawn" else photo.jpeg
    return Request(image=image, question=expand(NAMING, resolved))


def _red_mark(target: LabelledObject, size: tuple[int, int], shape: str, seed: str) -> Region:
    """A red mark in the default style; `seed` decides where on the object it is."""
    box = shape == "box"
    region = sample_region(
        target.box,
        None if box else target.polygons,
        size=size,
        rng=random.Random(0 if box else f"marked/{shape}/{seed}"),
        shape=shape,
        color="red",
    )
    style: dict[str, Any] = {"radius": None} if isinstance(region, Point) else {}
    return region.changed(alpha=None, width=None, id="1", **style)


def _several_items(photo: Photo, group: str) -> Iterator[BenchmarkItem]:
    """Questions about several marked objects of a photo."""
    counts, task = _SEVERAL[group]
    for attempt in range(_QUESTIONS_PER_PHOTO):
        place = f"{photo.id}/{group}/{attempt}"
        rng = np.random.default_rng(list(place.encode()))
        marked = _choose_apart(photo.objects, counts[attempt % len(counts)], rng)
        if marked is None:
            continue
        regions = [
            _red_mark(target, photo.size, "box", place).changed(color=color, id=str(i))
            for i, (target, color) in enumerate(zip(marked, PALETTE, strict=False), 1)
        ]
        resolved = resolve(regions, photo.size).regions
        # Questions depend on boxes, labels and ids only; the image is opened for the request.
        scene = Scene(Image.new("RGB", photo.size), photo.objects, tuple(marked), resolved)
        exchange = task(scene, rng)
        if exchange is None or (group == "four" and len(exchange[1]) > 1):  # letters only
            continue
        question, answer = exchange[0], expand(exchange[1], resolved)
        build = partial(Request, image=photo.jpeg, question=question, regions=regions)
        yield _item(photo, group, place, answer, build)


def _choose_apart(
    objects: Sequence[LabelledObject], count: int, rng: np.random.Generator
) -> list[LabelledObject] | None:
    """Objects that hardly overlap, with different labels if there are more than two."""
    chosen: list[LabelledObject] = []
    for index in rng.permutation(len(objects)).tolist():
        target = objects[index]
        fresh = count == 2 or all(each.label != target.label for each in chosen)
        apart = all(overlap(target.box, each.box) < 0.4 for each in chosen)
        if len(chosen) < count and fresh and apart:
            chosen.append(target)
    return chosen if len(chosen) == count else None
