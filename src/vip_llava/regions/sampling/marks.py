"""One random mark for one target, with the distributions of the original's training images.

All lengths scale with the longest side of the image over 336 pixels (`anchor`), as default widths and
radii do. Every random value - corners, control points, tip, width, opacity - is stored in the Region,
so drawing it again gives the same image. This module does not know data sets (`policies`) or images.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import Polygon, repair_polygons
from vip_llava.regions.sampling.policies import Style
from vip_llava.regions.sampling.targets import (
    XY,
    Target,
    inside,
    make_target,
    point_in_box,
    point_in_rings,
)
from vip_llava.regions.shapes import (
    ANCHOR,
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
)

__all__ = ["SAMPLERS", "sample_region"]

_TRIES = 32
_WIDEST_ANGLE = math.radians(150)
_CURVE_POINTS = 33  # 32 segments deviate from the cubic by less than 0.2 % of its size


@dataclass(frozen=True, slots=True)
class _Context:
    """What every sampler needs: the target, the image size and its scale, and the generator."""

    target: Target
    size: tuple[int, int]
    scale: float
    style: Style
    rng: random.Random

    def length(self, low: float, high: float) -> int:
        """A random whole number of pixels between two lengths at `anchor`; at least 1."""
        return max(self.rng.randint(int(low * self.scale), int(high * self.scale)), 1)

    def fixed(self, length: float) -> int:
        """A length at `anchor` in whole pixels of this image; at least 1."""
        return max(int(length * self.scale), 1)

    def clamp(self, point: XY) -> XY:
        """The nearest point inside the image."""
        right, bottom = map(float, self.size)
        return min(max(point[0], 0.0), right), min(max(point[1], 0.0), bottom)


def sample_region(
    box: Sequence[float],
    polygons: Sequence[Sequence[float]] | None = None,
    *,
    size: tuple[int, int],
    rng: random.Random,
    shape: str | None = None,
    color: str | tuple[int, int, int] | None = None,
    style: Style = "free",
    alpha: int | None = None,
    width: int | None = None,
    id: str | None = None,  # the field's name
    anchor: int = ANCHOR,
) -> Region:
    """A random mark for one object.

    Args:
        box: x1, y1, x2, y2 of the object in pixels.
        polygons: its outlines [x, y, x, y, ...] if known; marks then stay on the object.
        size: (width, height) of the image in pixels.
        rng: the only source of randomness.
        shape: a key of `SAMPLERS`; None samples one of them.
        color: as in a Region; None leaves it to `resolve`.
        style: "constant" fixes the line width of boxes and the radius of points.
        alpha: 0..255; None samples it.
        width: in pixels; None samples it.
        id: of the Region.
        anchor: the longest side, in pixels, for which the ranges of lengths hold.

    Raises:
        RegionError: an invalid box or outline, or an unknown shape or style.
    """
    if shape is None:
        shape = rng.choice(tuple(SAMPLERS))
    if shape not in SAMPLERS:
        raise RegionError(f"unknown shape {shape!r}; known: {', '.join(SAMPLERS)}")
    if style not in ("free", "constant"):
        raise RegionError(f'unknown style {style!r}; known: "free", "constant"')
    context = _Context(make_target(box, polygons, size), size, max(size) / anchor, style, rng)
    if alpha is None:
        alpha = rng.randint(48, 128) if shape == "mask" else rng.randint(96, 255)
    return SAMPLERS[shape](context, _Looks(color, alpha, width, id))


@dataclass(frozen=True, slots=True)
class _Looks:
    color: str | tuple[int, int, int] | None
    alpha: int
    width: int | None
    id: str | None


def _box(context: _Context, looks: _Looks) -> Region:
    width = looks.width or (
        context.fixed(3) if context.style == "constant" else context.length(2, 8)
    )
    return Box(*context.target.box, color=looks.color, alpha=looks.alpha, width=width, id=looks.id)


def _ellipse(context: _Context, looks: _Looks) -> Region:
    width = looks.width or context.length(2, 8)
    x1, y1, x2, y2 = context.target.extent
    right, bottom = context.size
    x, y, across, down = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    # Around an object that fills the image, the line could lie outside: keep one side of it inside.
    furthest = max(x / across, (right - x) / across, y / down, (bottom - y) / down)
    grow = min(context.rng.uniform(1.0, 1.5), furthest)
    across, down = across * grow, down * grow
    return Ellipse(
        x - across, y - down, x + across, y + down,
        color=looks.color, alpha=looks.alpha, width=width, id=looks.id,
    )  # fmt: skip


def _triangle(context: _Context, looks: _Looks) -> Region:
    width = looks.width or context.length(2, 8)
    points = _corners(context)
    return Triangle(points, color=looks.color, alpha=looks.alpha, width=width, id=looks.id)


def _corners(context: _Context) -> tuple[XY, XY, XY]:
    """Three points on the target, no angle wider than 150 degrees: flatter ones look like a line."""
    for _ in range(_TRIES):
        points = (_anywhere(context), _anywhere(context), _anywhere(context))
        if _widest_angle(points) <= _WIDEST_ANGLE:
            return points
    x1, y1, x2, y2 = context.target.extent  # a sliver holds only flat triangles
    return (x1, y2), (x2, y2), ((x1 + x2) / 2, y1)


def _widest_angle(points: tuple[XY, XY, XY]) -> float:
    """In radians; pi where two corners coincide."""
    a, b, c = (math.dist(points[i], points[(i + 1) % 3]) for i in range(3))
    short, middle, long = sorted((a, b, c))
    if short * middle == 0.0:
        return math.pi
    cosine = (short * short + middle * middle - long * long) / (2 * short * middle)
    return math.acos(min(max(cosine, -1.0), 1.0))


def _anywhere(context: _Context) -> XY:
    if context.target.rings:
        return point_in_rings(context.target.rings, context.rng)
    return point_in_box(context.target.box, context.rng)


def _point(context: _Context, looks: _Looks) -> Region:
    """A dot, or with probability 1/2 in the free style an oval of the same area."""
    radii: float | tuple[float, float] = context.fixed(8)
    if context.style == "free":
        radii = radius = context.length(5, 20)
        if context.rng.random() >= 0.5:
            aspect = context.rng.uniform(0.5, 2.0)
            radii = (radius * aspect, radius / aspect)
    x, y = _middle(context)
    return Point(
        x, y, radius=radii, color=looks.color, alpha=looks.alpha, width=looks.width, id=looks.id
    )


def _middle(context: _Context) -> XY:
    """A point on the target near its centre: normal, with the original's variance of side / 8."""
    rings = context.target.rings
    if rings:
        rings = (context.rng.choice(rings),)
    x1, y1, x2, y2 = Target(context.target.box, rings).extent
    across, down = math.sqrt((x2 - x1) / 8), math.sqrt((y2 - y1) / 8)
    for _ in range(10):
        x, y = context.rng.gauss((x1 + x2) / 2, across), context.rng.gauss((y1 + y2) / 2, down)
        if inside(rings[0], x, y) if rings else (x1 <= x <= x2 and y1 <= y <= y2):
            return x, y
    return point_in_rings(rings, context.rng) if rings else ((x1 + x2) / 2, (y1 + y2) / 2)


def _scribble(context: _Context, looks: _Looks) -> Region:
    """A cubic Bézier curve with four control points on the target, or on one of its parts."""
    width = looks.width or context.length(2, 12)
    rings = (context.rng.choice(context.target.rings),) if context.target.rings else ()
    one = _Context(
        Target(context.target.box, rings), context.size, context.scale, context.style, context.rng
    )
    a, b, c, d = _anywhere(one), _anywhere(one), _anywhere(one), _anywhere(one)
    points = tuple(
        (
            pa * a[0] + pb * b[0] + pc * c[0] + pd * d[0],
            pa * a[1] + pb * b[1] + pc * c[1] + pd * d[1],
        )
        for pa, pb, pc, pd in _BERNSTEIN
    )
    return Scribble(points, color=looks.color, alpha=looks.alpha, width=width, id=looks.id)


_BERNSTEIN = tuple(
    ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    for t in (step / (_CURVE_POINTS - 1) for step in range(_CURVE_POINTS))
)


def _arrow(context: _Context, looks: _Looks) -> Region:
    """An arrow from any direction, with its tip near the centre and its tail inside the image."""
    rng = context.rng
    width = looks.width or context.length(1, 6)
    x1, y1, x2, y2 = context.target.box
    # The limits are reversed for large objects; the original samples between them all the same.
    length = rng.uniform(0.8 * min(x2 - x1, y2 - y1), context.fixed(50))
    head = max(rng.uniform(0.2, 0.5) * length, int(6 * context.scale))
    shaft = max(length - head, head / 2)
    x = (x1 + x2) / 2 + rng.uniform(-0.25, 0.25) * (x2 - x1)
    y = (y1 + y2) / 2 + rng.uniform(-0.25, 0.25) * (y2 - y1)
    for _ in range(_TRIES):
        angle = rng.uniform(0.0, 2 * math.pi)
        tail = (x + shaft * math.cos(angle), y + shaft * math.sin(angle))
        if tail == context.clamp(tail):
            break
    return Arrow(
        tail=context.clamp(tail), tip=(x, y), head=head, filled=rng.random() < 0.5,
        color=looks.color, alpha=looks.alpha, width=width, id=looks.id,
    )  # fmt: skip


def _contour(context: _Context, looks: _Looks) -> Region:
    return _area(Contour, context, looks, looks.width or context.length(1, 2))


def _mask(context: _Context, looks: _Looks) -> Region:
    return _area(Mask, context, looks, looks.width)


def _area(
    kind: type[Contour] | type[Mask], context: _Context, looks: _Looks, width: int | None
) -> Contour | Mask:
    """The area of the outlines, or of the box if there are none.

    Outlines in data files often cross themselves in a pixel or two, which a Region rejects. They are
    repaired then, and replaced by the box if nothing is left.
    """
    x1, y1, x2, y2 = context.target.box
    frame = ((x1, y1, x1, y2, x2, y2, x2, y1),)
    given = tuple(
        tuple(value for point in ring for value in point) for ring in context.target.rings
    )

    def make(polygons: tuple[Polygon, ...]) -> Contour | Mask:
        return kind(
            polygons=polygons, color=looks.color, alpha=looks.alpha, width=width, id=looks.id
        )

    try:
        return make(given or frame)
    except RegionError:
        return make(tuple(map(tuple, repair_polygons(given))) or frame)


#: Shape -> its sampler. The order fixes which one a random number selects.
SAMPLERS: dict[str, Callable[[_Context, _Looks], Region]] = {
    "box": _box,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "point": _point,
    "scribble": _scribble,
    "arrow": _arrow,
    "contour": _contour,
    "mask": _mask,
}
