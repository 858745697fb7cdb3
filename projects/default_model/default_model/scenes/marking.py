"""Random marks for labelled objects: the eight shapes, in the paper's styles or the default one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from vip_llava.evaluation.coco_annotations import LabelledObject, Rectangle
from vip_llava.regions import PALETTE, Contour, Mask, Point, Region, resolve
from vip_llava.regions.sampling import sample_region

#: Marks are sampled by index, so the order is part of the training data.
SHAPES = ("box", "ellipse", "triangle", "point", "scribble", "contour", "mask", "arrow")

# A filled mask of a higher opacity hides its object; the range of the paper goes up to 255.
_MASK_ALPHA = 150
_DEFAULT_STYLE_SHARE = 0.5


def mark(
    objects: Sequence[LabelledObject],
    size: tuple[int, int],
    rng: np.random.Generator,
    weights: Mapping[str, float] | None = None,
    *,
    jitter: float = 0.12,
) -> tuple[Region, ...]:
    """A resolved region for each object, with ids "1", "2", ...; several have different colours.

    weights: relative frequency of each shape, 1 by default. jitter: maximum shift of an edge, as a
    fraction of the side.
    """
    chances = np.array([(weights or {}).get(shape, 1.0) for shape in SHAPES])
    reached = np.cumsum(chances / chances.sum())
    dice = random.Random(int(rng.integers(2**62)))
    colors: list[str | None] = [None] * len(objects)
    if len(objects) > 1 or rng.random() < 0.5:
        names = list(PALETTE)
        colors = [names[i] for i in rng.permutation(len(names))[: len(objects)]]
    regions = []
    for number, (target, color) in enumerate(zip(objects, colors, strict=True), 1):
        box = _jittered(target.box, size, rng, jitter)
        region = sample_region(
            box,
            target.polygons,
            size=size,
            rng=dice,
            shape=SHAPES[min(int(reached.searchsorted(rng.random(), "right")), len(SHAPES) - 1)],
            color=color,
            id=str(number),
        )
        regions.append(_restyled(region, rng))
    return resolve(regions, size).regions


def _restyled(region: Region, rng: np.random.Generator) -> Region:
    if rng.random() < _DEFAULT_STYLE_SHARE:
        looks: dict[str, None] = {"alpha": None, "width": None}
        return region.changed(**looks, **({"radius": None} if isinstance(region, Point) else {}))
    if isinstance(region, Mask | Contour) and (region.alpha or 0) > _MASK_ALPHA:
        return region.changed(alpha=_MASK_ALPHA)
    return region


def _jittered(
    box: Rectangle, size: tuple[int, int], rng: np.random.Generator, jitter: float
) -> Rectangle:
    """The box with randomly shifted edges, within the image and at least 3 pixels wide."""
    x1, y1, x2, y2 = box
    dx, dy = (x2 - x1) * jitter, (y2 - y1) * jitter
    move = rng.uniform(-1, 1, 4) * (dx, dy, dx, dy) * rng.random()
    x1, y1 = max(x1 + move[0], 0.0), max(y1 + move[1], 0.0)
    x2, y2 = min(x2 + move[2], float(size[0])), min(y2 + move[3], float(size[1]))
    if x2 - x1 < 3 or y2 - y1 < 3:
        return box
    return float(x1), float(y1), float(x2), float(y2)
