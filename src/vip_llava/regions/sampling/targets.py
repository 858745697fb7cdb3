"""What a mark points at, and random points inside it.

A `Target` is a box in pixels and, if known, the outlines of the object. Plain floats and tuples are
faster here than arrays or a geometry library: a mark needs a handful of points in outlines of a few
dozen corners. This module does not know shapes, colours or images.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import clip_polygons

__all__ = ["XY", "Ring", "Target", "make_target", "point_in_box", "point_in_rings"]

XY: TypeAlias = tuple[float, float]
Ring: TypeAlias = tuple[XY, ...]

_TRIES = 50


@dataclass(frozen=True, slots=True)
class Target:
    """box: x1, y1, x2, y2 in pixels. rings: the outlines, empty if unknown."""

    box: tuple[float, float, float, float]
    rings: tuple[Ring, ...] = ()

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The bounding box of the outlines, or the box if there are none."""
        if not self.rings:
            return self.box
        return bounds(self.rings)


def bounds(rings: Sequence[Ring]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around all rings."""
    xs = [x for ring in rings for x, _ in ring]
    ys = [y for ring in rings for _, y in ring]
    return min(xs), min(ys), max(xs), max(ys)


def make_target(
    box: Sequence[float], polygons: Sequence[Sequence[float]] | None, size: tuple[int, int]
) -> Target:
    """Check and clip a box (pixels) and outlines ([x, y, x, y, ...] each) of a (width, height) image.

    An outline with fewer than three different corners, or narrower than a pixel, is dropped. Raises
    RegionError for a box that is not four finite numbers in order or lies outside the image, and for
    an outline of odd length or with numbers that are not finite.
    """
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise RegionError(
            f"a box is four finite numbers x1, y1, x2, y2 in pixels, not {list(box)!r}"
        )
    width, height = size
    x1, y1, x2, y2 = map(float, box)
    if x1 >= x2 or y1 >= y2:
        raise RegionError(f"box {list(box)!r} is empty or reversed: x1 < x2 and y1 < y2 are needed")
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise RegionError(f"box {list(box)!r} lies outside the image of {width} x {height} pixels")
    rings = (ring for polygon in polygons or () for ring in _rings(polygon, width, height))
    return Target(cut, tuple(rings))


def _rings(flat: Sequence[float], width: int, height: int) -> list[Ring]:
    """The parts of an outline inside the image: usually one, none or several at its border."""
    values = tuple(map(float, flat))
    if len(values) % 2 or not all(map(math.isfinite, values)):
        raise RegionError(
            f"an outline is an even count of finite numbers x, y, x, y, ...; this has {len(values)}"
        )
    parts: tuple[tuple[float, ...], ...] = (values,)
    xs, ys = values[::2], values[1::2]
    if len(xs) >= 3 and (min(xs) < 0 or min(ys) < 0 or max(xs) > width or max(ys) > height):
        parts = clip_polygons(parts, width, height)
    rings = (tuple(zip(part[::2], part[1::2], strict=True)) for part in parts)
    return [ring for ring in rings if len(set(ring)) >= 3 and _is_visible(ring)]


def _is_visible(ring: Ring) -> bool:
    x1, y1, x2, y2 = bounds([ring])
    return x2 - x1 >= 1 and y2 - y1 >= 1


def point_in_box(box: tuple[float, float, float, float], rng: random.Random) -> XY:
    """A point of the box, uniformly distributed."""
    x1, y1, x2, y2 = box
    return x1 + (x2 - x1) * rng.random(), y1 + (y2 - y1) * rng.random()


def point_in_rings(rings: Sequence[Ring], rng: random.Random) -> XY:
    """A point inside one of the rings, uniformly distributed unless they are very thin.

    Rejection sampling in the bounding box may miss a sliver in all its tries. The fallback is a point
    of a random cross-section, which lies inside but is not uniformly distributed.
    """
    box = bounds(rings)
    for _ in range(_TRIES):
        x, y = point_in_box(box, rng)
        if any(inside(ring, x, y) for ring in rings):
            return x, y
    return _in_cross_section(rng.choice(rings), rng)


def inside(ring: Ring, x: float, y: float) -> bool:
    """Even-odd test. A point on the outline may count as inside or outside."""
    found = False
    px, py = ring[-1]
    for qx, qy in ring:
        if (py > y) != (qy > y) and x < (qx - px) * (y - py) / (qy - py) + px:
            found = not found
        px, py = qx, qy
    return found


def _in_cross_section(ring: Ring, rng: random.Random) -> XY:
    _, y1, _, y2 = bounds([ring])
    y = y1 + (y2 - y1) * rng.random()
    crossings = []
    px, py = ring[-1]
    for qx, qy in ring:
        if (py > y) != (qy > y):
            crossings.append((qx - px) * (y - py) / (qy - py) + px)
        px, py = qx, qy
    crossings.sort()
    spans = list(zip(crossings[::2], crossings[1::2], strict=True))
    if not spans:  # the ring has no height: a point of its line
        (ax, ay), (bx, by) = rng.sample(ring, 2)
        part = rng.random()
        return ax + (bx - ax) * part, ay + (by - ay) * part
    start, end = rng.choices(spans, [b - a + 1e-9 for a, b in spans])[0]
    return start + (end - start) * rng.random(), y
