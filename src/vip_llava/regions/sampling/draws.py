"""One random mark for one thing: the distributions of the original's training images.

All lengths scale with the longest side of the image over 336 pixels (`anchor`), as line widths and
radii do in drawing. What is drawn from the generator ends up in the Region - corners, control points,
tip, width, opacity - so that drawing the Region again gives the same image.

It deliberately does not know data sets (that is `policies.py`) and does not draw images.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import Polygon, repair_polygons
from vip_llava.regions.sampling.places import (
    XY,
    Place,
    inside,
    place_of,
    point_in_box,
    point_in_rings,
)
from vip_llava.regions.sampling.policies import Policy, Style, sample_prompts
from vip_llava.regions.shapes import (
    SHAPES,
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

__all__ = ["sample_region", "sample_regions"]

ANCHOR = 336  # the side, in pixels, for which the widths and radii below are meant
_TRIES = 32
_WIDEST_ANGLE = math.radians(150)
_CURVE_POINTS = 33  # a cubic in 32 pieces is off its curve by less than 0.2 % of its size


@dataclass(frozen=True, slots=True)
class _Draw:
    """What every shape needs: the thing, the image, the generator, the looks."""

    place: Place
    size: tuple[int, int]
    scale: float
    style: Style
    rng: random.Random

    def length(self, low: float, high: float) -> int:
        """A whole number of pixels between two lengths meant for 336; at least 1."""
        return max(self.rng.randint(int(low * self.scale), int(high * self.scale)), 1)

    def fixed(self, length: float) -> int:
        return max(int(length * self.scale), 1)

    def clamp(self, point: XY) -> XY:
        """The nearest point of the image."""
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
    """A mark for the thing in `box` (x1, y1, x2, y2) of an image of `size` (width, height), in pixels.

    polygons: outlines [x, y, x, y, ...] of the thing where known; marks then stay on the thing. shape:
    one of "box", "ellipse", "triangle", "point", "scribble", "contour", "mask", "arrow", or any of
    them. color: as in a Region; None leaves it to `resolve`. style: "constant" fixes the line width of
    boxes and the radius of points. alpha (0..255) and width (pixels) are drawn unless given. Raises
    RegionError for a box or outline that can't be used and for an unknown shape or style.
    """
    if shape is None:
        shape = rng.choice(tuple(SHAPES))
    if shape not in _SAMPLERS:
        raise RegionError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    if style not in ("free", "constant"):
        raise RegionError(f'unknown style {style!r}; known: "free", "constant"')
    draw = _Draw(place_of(box, polygons, size), size, max(size) / anchor, style, rng)
    if alpha is None:
        alpha = rng.randint(48, 128) if shape == "mask" else rng.randint(96, 255)
    return _SAMPLERS[shape](draw, _Looks(color, alpha, width, id))


def sample_regions(
    boxes: Sequence[Sequence[float]],
    polygons: Sequence[Sequence[Sequence[float]] | None] | None = None,
    *,
    size: tuple[int, int],
    rng: random.Random,
    rule: Policy,
    alpha: int | None = None,
) -> list[Region]:
    """Marks for several things of one image, with the ids "1", "2", ...; told apart by their wording.

    For several boxes that share one mark (the dogs of one caption) use `sample_prompts` for the
    things and `sample_region` for their boxes.
    """
    outlines = polygons if polygons is not None else [None] * len(boxes)
    prompts = sample_prompts(rule, len(boxes), rng)
    return [
        sample_region(
            box, outline, size=size, rng=rng, shape=prompt.shape, color=prompt.color,
            style=rule.style, alpha=alpha, id=str(number),
        )
        for number, (box, outline, prompt) in enumerate(zip(boxes, outlines, prompts, strict=True), 1)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Looks:
    color: str | tuple[int, int, int] | None
    alpha: int
    width: int | None
    id: str | None


def _box(draw: _Draw, looks: _Looks) -> Region:
    width = looks.width or (draw.fixed(3) if draw.style == "constant" else draw.length(2, 8))
    return Box(*draw.place.box, color=looks.color, alpha=looks.alpha, width=width, id=looks.id)


def _ellipse(draw: _Draw, looks: _Looks) -> Region:
    width = looks.width or draw.length(2, 8)
    x1, y1, x2, y2 = draw.place.extent
    right, bottom = draw.size
    x, y, across, down = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    # Around a thing that fills the image the line could lie wholly outside: keep one side of it in.
    furthest = max(x / across, (right - x) / across, y / down, (bottom - y) / down)
    grow = min(draw.rng.uniform(1.0, 1.5), furthest)
    across, down = across * grow, down * grow
    return Ellipse(
        x - across, y - down, x + across, y + down,
        color=looks.color, alpha=looks.alpha, width=width, id=looks.id,
    )  # fmt: skip


def _triangle(draw: _Draw, looks: _Looks) -> Region:
    width = looks.width or draw.length(2, 8)
    points = _corners(draw)
    return Triangle(points, color=looks.color, alpha=looks.alpha, width=width, id=looks.id)


def _corners(draw: _Draw) -> tuple[XY, XY, XY]:
    """Three points on the thing, no angle wider than 150 degrees: flatter ones look like a line."""
    for _ in range(_TRIES):
        points = (_anywhere(draw), _anywhere(draw), _anywhere(draw))
        if _widest_angle(points) <= _WIDEST_ANGLE:
            return points
    x1, y1, x2, y2 = draw.place.extent  # a sliver holds only flat triangles: the one of its box
    return (x1, y2), (x2, y2), ((x1 + x2) / 2, y1)


def _widest_angle(points: tuple[XY, XY, XY]) -> float:
    """In radians; pi where two corners coincide."""
    a, b, c = (math.dist(points[i], points[(i + 1) % 3]) for i in range(3))
    short, middle, long = sorted((a, b, c))
    if short * middle == 0.0:
        return math.pi
    cosine = (short * short + middle * middle - long * long) / (2 * short * middle)
    return math.acos(min(max(cosine, -1.0), 1.0))


def _anywhere(draw: _Draw) -> XY:
    if draw.place.rings:
        return point_in_rings(draw.place.rings, draw.rng)
    return point_in_box(draw.place.box, draw.rng)


def _point(draw: _Draw, looks: _Looks) -> Region:
    """A dot, or with chance 1/2 in the free style an oval of the same area."""
    radii: float | tuple[float, float] = draw.fixed(8)
    if draw.style == "free":
        radii = radius = draw.length(5, 20)
        if draw.rng.random() >= 0.5:
            aspect = draw.rng.uniform(0.5, 2.0)
            radii = (radius * aspect, radius / aspect)
    x, y = _middle(draw)
    return Point(
        x, y, radius=radii, color=looks.color, alpha=looks.alpha, width=looks.width, id=looks.id
    )


def _middle(draw: _Draw) -> XY:
    """A point near the middle of the thing and on it: normal, with the variance side / 8 of the original."""
    rings = draw.place.rings
    if rings:
        rings = (draw.rng.choice(rings),)
    x1, y1, x2, y2 = Place(draw.place.box, rings).extent
    across, down = math.sqrt((x2 - x1) / 8), math.sqrt((y2 - y1) / 8)
    for _ in range(10):
        x, y = draw.rng.gauss((x1 + x2) / 2, across), draw.rng.gauss((y1 + y2) / 2, down)
        if inside(rings[0], x, y) if rings else (x1 <= x <= x2 and y1 <= y <= y2):
            return x, y
    return point_in_rings(rings, draw.rng) if rings else ((x1 + x2) / 2, (y1 + y2) / 2)


def _scribble(draw: _Draw, looks: _Looks) -> Region:
    """A cubic curve through the thing: four control points on it (on one part, where it has several)."""
    width = looks.width or draw.length(2, 12)
    rings = (draw.rng.choice(draw.place.rings),) if draw.place.rings else ()
    one = _Draw(Place(draw.place.box, rings), draw.size, draw.scale, draw.style, draw.rng)
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


def _arrow(draw: _Draw, looks: _Looks) -> Region:
    """Tip near the middle of the thing, from any direction; bounded tries keep the tail in the image."""
    rng = draw.rng
    width = looks.width or draw.length(1, 6)
    x1, y1, x2, y2 = draw.place.box
    # The two limits cross for large things; the original then draws between them all the same.
    length = rng.uniform(0.8 * min(x2 - x1, y2 - y1), draw.fixed(50))
    head = max(rng.uniform(0.2, 0.5) * length, int(6 * draw.scale))
    shaft = max(length - head, head / 2)
    x = (x1 + x2) / 2 + rng.uniform(-0.25, 0.25) * (x2 - x1)
    y = (y1 + y2) / 2 + rng.uniform(-0.25, 0.25) * (y2 - y1)
    for _ in range(_TRIES):
        angle = rng.uniform(0.0, 2 * math.pi)
        tail = (x + shaft * math.cos(angle), y + shaft * math.sin(angle))
        if tail == draw.clamp(tail):
            break
    return Arrow(
        tail=draw.clamp(tail), tip=(x, y), head=head, filled=rng.random() < 0.5,
        color=looks.color, alpha=looks.alpha, width=width, id=looks.id,
    )  # fmt: skip


def _contour(draw: _Draw, looks: _Looks) -> Region:
    return _area(Contour, draw, looks, looks.width or draw.length(1, 2))


def _mask(draw: _Draw, looks: _Looks) -> Region:
    return _area(Mask, draw, looks, looks.width)


def _area(
    kind: type[Contour] | type[Mask], draw: _Draw, looks: _Looks, width: int | None
) -> Contour | Mask:
    """An area of the outlines, or of the box where there are none.

    Outlines of data files often cross themselves in a pixel or two, which a Region refuses; then
    simple ones that cover the same pixels take their place, and without any the box.
    """
    x1, y1, x2, y2 = draw.place.box
    frame = ((x1, y1, x1, y2, x2, y2, x2, y1),)
    given = tuple(tuple(value for point in ring for value in point) for ring in draw.place.rings)

    def make(polygons: tuple[Polygon, ...]) -> Contour | Mask:
        return kind(
            polygons=polygons, color=looks.color, alpha=looks.alpha, width=width, id=looks.id
        )

    try:
        return make(given or frame)
    except RegionError:
        return make(tuple(map(tuple, repair_polygons(given))) or frame)


_SAMPLERS: Mapping[str, Callable[[_Draw, _Looks], Region]] = MappingProxyType(
    {
        "box": _box,
        "ellipse": _ellipse,
        "triangle": _triangle,
        "point": _point,
        "scribble": _scribble,
        "arrow": _arrow,
        "contour": _contour,
        "mask": _mask,
    }
)
