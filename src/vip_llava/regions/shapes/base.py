"""The eight things a person can point with, as frozen values.

A region carries its frame: "pixel" (of the original, EXIF-turned image; x runs 0..width, y 0..height)
or "unit" (the same as fractions 0..1; lengths such as a radius are fractions of the longer side).
Everything is checked when the value is made, so that no later step meets a NaN, a reversed box or a
polygon that crosses itself. A region does not know the image it is on: defaults that depend on
the image are filled in by `resolve`, and pixels are the business of `draw`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.colors import normalize_color
from vip_llava.regions.geometry import Bounds, Point2, Polygon
from vip_llava.regions.rle import Rle

__all__ = [
    "SHAPES",
    "Arrow",
    "Box",
    "Contour",
    "Ellipse",
    "Frame",
    "Mask",
    "Point",
    "Region",
    "Scribble",
    "Size",
    "Triangle",
]

Frame = Literal["pixel", "unit"]
Size = tuple[int, int]  # (width, height) in pixels
Move = Callable[[float, float], Point2]

MAX_WIDTH = 1000.0
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_set = object.__setattr__  # the frozen values are completed in __post_init__


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What all shapes share. Use one of the eight subclasses.

    frame: "pixel" or "unit". color: a palette name, "#rrggbb" or (r, g, b); kept as a string.
    alpha: 0 (invisible) .. 255 (opaque). width: of the line, in pixels of the image; see `Contour`
    for its meaning there; without effect on Mask and Point. id: the name in `<region:ID>`.
    None means: the default, filled in by `resolve`. Raises RegionError for anything else.
    """

    shape: ClassVar[str] = ""

    frame: Frame = "pixel"
    color: str | tuple[int, int, int] | None = None
    alpha: int | None = None
    width: float | int | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not (isinstance(self.id, str) and _ID.match(self.id)):
            raise RegionError(
                f"{self.shape}: id must be 1 to 64 letters, digits, '.', '_' or '-', not {geometry.brief(self.id)}"
            )
        who = self.label
        if self.frame not in ("pixel", "unit"):
            raise RegionError(
                f'{who}: frame must be "pixel" or "unit", not {geometry.brief(self.frame)}'
            )
        if self.color is not None:
            _set(self, "color", normalize_color(self.color, who))
        if self.alpha is not None:
            alpha = self.alpha
            if isinstance(alpha, bool) or not hasattr(alpha, "__index__") or not 0 <= alpha <= 255:
                raise RegionError(
                    f"{who}: alpha must be a whole number 0..255, not {geometry.brief(alpha)}"
                )
            _set(self, "alpha", int(alpha))
        if self.width is not None:
            width = geometry.number(self.width, "width", who)
            if not 0 < width <= MAX_WIDTH:
                raise RegionError(
                    f"{who}: width must be over 0 and at most {MAX_WIDTH:g} pixels, not {width:g}"
                )
            _set(self, "width", width)
        self._check(who)

    @property
    def label(self) -> str:
        """How messages name this region: "region '2' (box)", or "box" without an id."""
        return self.shape if self.id is None else f"region {self.id!r} ({self.shape})"

    def _check(self, who: str) -> None:
        """Completes and checks the geometry."""
        raise NotImplementedError

    def _extent(self) -> Bounds:
        """x1, y1, x2, y2 around the geometry, in the region's own frame, not cut off anywhere."""
        raise NotImplementedError

    def _moved(self, move: Move, scale: float) -> dict[str, Any]:
        """The geometry fields after moving each point and scaling each length."""
        raise NotImplementedError

    def _geometry(self) -> dict[str, Any]:
        """The geometry as JSON."""
        raise NotImplementedError

    @classmethod
    def _parse(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        """The geometry fields from JSON; may raise KeyError for a missing key."""
        raise NotImplementedError

    def to_frame(self, frame: Frame, size: Size) -> Self:
        """The same region in another frame of an image of `size` (width, height) in pixels."""
        check_size(size)
        if frame == self.frame:
            return self
        if frame not in ("pixel", "unit"):
            raise RegionError(
                f'{self.label}: frame must be "pixel" or "unit", not {geometry.brief(frame)}'
            )
        width, height = size
        longest = float(max(size))
        if frame == "pixel":
            moved = self._moved(lambda x, y: (x * width, y * height), longest)
        else:
            moved = self._moved(lambda x, y: (x / width, y / height), 1 / longest)
        region = self.changed(frame=frame, **moved)
        if frame == "pixel" and not all(
            abs(part) <= geometry.MAX_COORDINATE for part in region._extent()
        ):
            raise RegionError(f"{self.label}: reaches beyond {geometry.MAX_COORDINATE:g} pixels")
        return region

    def changed(self, **values: Any) -> Self:
        """A copy with other field values, unchecked: the caller vouches for them."""
        region = object.__new__(type(self))
        for name in _FIELDS[type(self)]:
            _set(region, name, values[name] if name in values else getattr(self, name))
        return region

    def extent(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels around the geometry, also where it lies outside the image."""
        return self.to_frame("pixel", size)._extent()

    def bounds(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels of the place pointed at, cut off at the image of `size`.

        An arrow points at a square around its tip; every other shape at its own box. Raises
        RegionError when nothing of it lies inside the image.
        """
        x1, y1, x2, y2 = self.extent(size)
        cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise RegionError(
                f"{self.label}: lies outside the image of {size[0]} x {size[1]} pixels"
            )
        return cut

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: shape, frame and geometry, and what else was given."""
        value: dict[str, Any] = {} if self.id is None else {"id": self.id}
        value |= {"shape": self.shape, "frame": self.frame, **self._geometry()}
        if self.color is not None:
            value["color"] = self.color
        if self.alpha is not None:
            value["alpha"] = self.alpha
        if self.width is not None:
            value["width"] = plain(self.width)
        return value

    @staticmethod
    def from_json(value: object) -> Region:
        """The region of a JSON object; see `vip_llava.regions.region_from_json`."""
        from vip_llava.regions.serialize import region_from_json

        return region_from_json(value)


@dataclass(frozen=True, slots=True)
class _Corners(Region):
    """A shape given by the corners of its box: left, top, right, bottom."""

    x1: float
    y1: float
    x2: float
    y2: float

    def _check(self, who: str) -> None:
        for name in ("x1", "y1", "x2", "y2"):
            _set(self, name, geometry.number(getattr(self, name), name, who))
        if self.x1 > self.x2 or self.y1 > self.y2:
            raise RegionError(
                f"{who}: the corners are reversed ({self.x1:g}, {self.y1:g}, {self.x2:g}, {self.y2:g}); "
                "give left, top, right, bottom"
            )
        if self.x1 == self.x2 or self.y1 == self.y2:
            raise RegionError(
                f"{who}: has no area ({self.x1:g}, {self.y1:g}, {self.x2:g}, {self.y2:g})"
            )

    def _extent(self) -> Bounds:
        return self.x1, self.y1, self.x2, self.y2

    def _moved(self, move: Move, scale: float) -> dict[str, Any]:
        (x1, y1), (x2, y2) = move(self.x1, self.y1), move(self.x2, self.y2)
        return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}

    def _geometry(self) -> dict[str, Any]:
        return {"box": [plain(part) for part in self._extent()]}

    @classmethod
    def _parse(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        box = value["box"]
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            raise RegionError(f"{who}: box must be [x1, y1, x2, y2], not {geometry.brief(box)}")
        return dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))


@dataclass(frozen=True, slots=True)
class Box(_Corners):
    """A rectangle: `Box(x1, y1, x2, y2)` with left < right and top < bottom. The line lies inside."""

    shape: ClassVar[str] = "box"


@dataclass(frozen=True, slots=True)
class Ellipse(_Corners):
    """The ellipse that fills a box: `Ellipse(x1, y1, x2, y2)`. The line lies inside."""

    shape: ClassVar[str] = "ellipse"


@dataclass(frozen=True, slots=True)
class _Path(Region):
    """A shape given by points [[x, y], ...]."""

    points: tuple[Point2, ...]

    limits: ClassVar[tuple[int, int]] = (2, geometry.MAX_POINTS)

    def _check(self, who: str) -> None:
        _set(self, "points", geometry.points(self.points, *self.limits, who))

    def _extent(self) -> Bounds:
        across, down = zip(*self.points, strict=True)
        return min(across), min(down), max(across), max(down)

    def extent(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels around the points; a level or upright line counts as one pixel."""
        x1, y1, x2, y2 = self.to_frame("pixel", size)._extent()
        across, down = (0.5 if x1 == x2 else 0.0), (0.5 if y1 == y2 else 0.0)
        return x1 - across, y1 - down, x2 + across, y2 + down

    def _moved(self, move: Move, scale: float) -> dict[str, Any]:
        return {"points": tuple(move(x, y) for x, y in self.points)}

    def _geometry(self) -> dict[str, Any]:
        return {"points": [[plain(x), plain(y)] for x, y in self.points]}

    @classmethod
    def _parse(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        return {"points": value["points"]}


@dataclass(frozen=True, slots=True)
class Triangle(_Path):
    """The outline of a triangle: `Triangle([(x, y), (x, y), (x, y)])`, not all on one line."""

    shape: ClassVar[str] = "triangle"
    limits: ClassVar[tuple[int, int]] = (3, 3)

    def _check(self, who: str) -> None:
        super(Triangle, self)._check(who)
        (x1, y1), (x2, y2), (x3, y3) = self.points
        if (x2 - x1) * (y3 - y1) == (x3 - x1) * (y2 - y1):
            raise RegionError(f"{who}: has no area; its three points lie on one line")


@dataclass(frozen=True, slots=True)
class Scribble(_Path):
    """A free-hand line through 2 to 10,000 points: `Scribble([(x, y), ...])`."""

    shape: ClassVar[str] = "scribble"

    def _check(self, who: str) -> None:
        super(Scribble, self)._check(who)
        if all(each == self.points[0] for each in self.points):
            raise RegionError(f"{who}: has no length; all its points are the same")


@dataclass(frozen=True, slots=True)
class Point(Region):
    """A filled dot: `Point(x, y, radius=4)`.

    radius: in pixels (or, in the unit frame, of the longer side); (across, down) makes an oval dot.
    None is 8 pixels on an image of 336, in proportion on others.
    """

    x: float
    y: float
    radius: float | tuple[float, float] | None = None

    shape: ClassVar[str] = "point"

    def _check(self, who: str) -> None:
        _set(self, "x", geometry.number(self.x, "x", who))
        _set(self, "y", geometry.number(self.y, "y", who))
        if self.radius is None:
            return
        if isinstance(self.radius, (tuple, list)):
            radii = geometry.point(self.radius, "radius", who)
            _set(self, "radius", radii if radii[0] != radii[1] else radii[0])
        else:
            radii = (geometry.number(self.radius, "radius", who),) * 2
            _set(self, "radius", radii[0])
        if not all(0 < radius <= 100 * MAX_WIDTH for radius in radii):
            raise RegionError(
                f"{who}: radius must be over 0 and at most {100 * MAX_WIDTH:g}, not {self.radius!r}"
            )

    @property
    def radii(self) -> Point2:
        """Radius across and down, in the region's frame; (0, 0) where none was given."""
        if self.radius is None:
            return 0.0, 0.0
        return self.radius if isinstance(self.radius, tuple) else (self.radius, self.radius)

    def _extent(self) -> Bounds:
        across, down = self.radii
        return self.x - across, self.y - down, self.x + across, self.y + down

    def extent(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels around the dot, of the default radius where none was given."""
        region = self.to_frame("pixel", size)
        if region.radius is None:
            region = region.changed(radius=default_radius(size))
        return region._extent()

    def _moved(self, move: Move, scale: float) -> dict[str, Any]:
        x, y = move(self.x, self.y)
        across, down = self.radii
        radius: float | Point2 | None = None
        if self.radius is not None:
            radius = across * scale if across == down else (across * scale, down * scale)
        return {"x": x, "y": y, "radius": radius}

    def _geometry(self) -> dict[str, Any]:
        value: dict[str, Any] = {"point": [plain(self.x), plain(self.y)]}
        if isinstance(self.radius, tuple):
            value["radius"] = [plain(part) for part in self.radius]
        elif self.radius is not None:
            value["radius"] = plain(self.radius)
        return value

    @classmethod
    def _parse(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        x, y = geometry.point(value["point"], "point", who)
        return {"x": x, "y": y, "radius": value.get("radius")}


@dataclass(frozen=True, slots=True)
class Arrow(Region):
    """An arrow from its tail to what it points at: `Arrow(tail=(x, y), tip=(x, y))`.

    head: length of the two sides of the head, in pixels (or of the longer side); None chooses one
    that suits the arrow. filled: a solid head, or just its two lines.
    """

    tail: Point2
    tip: Point2
    head: float | None = None
    filled: bool = True

    shape: ClassVar[str] = "arrow"

    def _check(self, who: str) -> None:
        _set(self, "tail", geometry.point(self.tail, "tail", who))
        _set(self, "tip", geometry.point(self.tip, "tip", who))
        if self.tail == self.tip:
            raise RegionError(f"{who}: has no length; tail and tip are the same point")
        if self.head is not None:
            head = geometry.number(self.head, "head", who)
            if not 0 < head <= 100 * MAX_WIDTH:
                raise RegionError(
                    f"{who}: head must be over 0 and at most {100 * MAX_WIDTH:g}, not {head:g}"
                )
            _set(self, "head", head)
        if not isinstance(self.filled, bool):
            raise RegionError(
                f"{who}: filled must be true or false, not {geometry.brief(self.filled)}"
            )

    def _extent(self) -> Bounds:
        (x1, y1), (x2, y2) = self.tail, self.tip
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def bounds(self, size: Size) -> Bounds:
        """A square around the tip, a fifth of the image's longer side wide, cut off at the image."""
        region = self.to_frame("pixel", size)
        (x, y), half = region.tip, max(size) / 10
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise RegionError(
                f"{self.label}: its tip lies outside the image of {size[0]} x {size[1]} pixels"
            )
        return (
            max(x - half, 0.0),
            max(y - half, 0.0),
            min(x + half, float(size[0])),
            min(y + half, float(size[1])),
        )

    def _moved(self, move: Move, scale: float) -> dict[str, Any]:
        head = None if self.head is None else self.head * scale
        return {"tail": move(*self.tail), "tip": move(*self.tip), "head": head}

    def _geometry(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "tail": [plain(part) for part in self.tail],
            "tip": [plain(part) for part in self.tip],
        }
        if self.head is not None:
            value["head"] = plain(self.head)
        if not self.filled:
            value["filled"] = False
        return value

    @classmethod
    def _parse(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        found = {"tail": value["tail"], "tip": value["tip"]}
        return found | {key: value[key] for key in ("head", "filled") if key in value}


@dataclass(frozen=True, slots=True)
class _Area(Region):
    """A shape given by polygons or by a run-length mask, exactly one of the two."""

    polygons: tuple[Polygon, ...] | None = None
    rle: Rle | None = None

    def _check(self, who: str) -> None:
        if (self.polygons is None) == (self.rle is None):
            raise RegionError(f"{who}: give either polygons or rle")
        if self.polygons is not None:
            _set(self, "polygons", geometry.polygons(self.polygons, who))
            return
        if self.frame != "pixel":
            raise RegionError(f'{who}: an rle counts pixels; its frame must be "pixel"')
        _set(self, "rle", Rle.parse(self.rle, who))

    def _extent(self) -> Bounds:
        if self.rle is not None:
            x1, y1, x2, y2 = self.rle.bounds()
            return float(x1), float(y1), float(x2), float(y2)
        parts = self.polygons or ()
        across = [part[0::2] for part in parts]
        down = [part[1::2] for part in parts]
        return (
            min(map(min, across)),
            min(map(min, down)),
            max(map(max, across)),
            max(map(max, down)),
        )

    def to_frame(self, frame: Frame, size: Size) -> Self:
        """The same region in another frame; an rle stays in pixels and raises RegionError."""
        if self.rle is not None and frame != "pixel":
            raise RegionError(f'{self.label}: an rle counts pixels; its frame must be "pixel"')
        return super(_Area, self).to_frame(frame, size)

    def _moved(self, move: Move, scale: float) -> dict[str, Any]:
        moved = []
        for part in self.polygons or ():
            pairs = zip(part[0::2], part[1::2], strict=True)
            moved.append(tuple(number for x, y in pairs for number in move(x, y)))
        return {"polygons": tuple(moved)}

    def _geometry(self) -> dict[str, Any]:
        if self.rle is not None:
            return {"rle": self.rle.to_json()}
        return {"polygons": [[plain(number) for number in part] for part in self.polygons or ()]}

    @classmethod
    def _parse(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        return {key: value[key] for key in ("polygons", "rle") if key in value}


@dataclass(frozen=True, slots=True)
class Contour(_Area):
    """The outline of an area: `Contour(polygons=[[x, y, ...], ...])` or `Contour(rle={...})`.

    width: how far the line reaches to either side of the outline, so that it is 2 x width + 1
    pixels thick (the meaning it has in the training images).
    """

    shape: ClassVar[str] = "contour"


@dataclass(frozen=True, slots=True)
class Mask(_Area):
    """A filled area: `Mask(polygons=[[x, y, ...], ...])` or `Mask(rle={...})`."""

    shape: ClassVar[str] = "mask"


#: Shape name -> type, in the order of the design.
SHAPES: Mapping[str, type[Region]] = {
    kind.shape: kind for kind in (Box, Ellipse, Triangle, Point, Scribble, Arrow, Contour, Mask)
}


def default_radius(size: Size) -> float:
    """Radius of a dot where none was given: 8 pixels at 336, in proportion to the longer side."""
    return float(max(1, int(8 * max(size) / 336)))


def check_size(size: Size) -> None:
    """An image's (width, height) in whole pixels; anything else is a programmer's mistake."""
    width, height = size
    if not (width >= 1 and height >= 1):
        raise ValueError(f"an image's size is (width, height), each at least 1, not {size!r}")


def plain(value: float) -> float | int:
    """A number as JSON writes it best: whole numbers without '.0'."""
    return int(value) if value == int(value) else value


_FIELDS: dict[type[Region], tuple[str, ...]] = {
    kind: tuple(each.name for each in fields(kind)) for kind in SHAPES.values()
}
