"""Triangle and Scribble: shapes given by points that straight lines connect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.geometry import Bounds, Point2
from vip_llava.regions.shapes.base import Move, Region, Size, assign, json_number
from vip_llava.regions.strokes import Ink, Pen, draw_joints, draw_path

__all__ = ["Scribble", "Triangle"]


@dataclass(frozen=True, slots=True)
class _Path(Region):
    """A shape given by points [[x, y], ...]."""

    points: tuple[Point2, ...]

    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = (("points",),)
    point_limits: ClassVar[tuple[int, int]] = (2, geometry.MAX_POINTS)

    def validate(self, who: str) -> None:
        assign(self, "points", geometry.points(self.points, *self.point_limits, who))

    def span(self) -> Bounds:
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def extent(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels; a horizontal or vertical line counts as one pixel thick."""
        x1, y1, x2, y2 = self.to_frame("pixel", size).span()
        half_x, half_y = (0.5 if x1 == x2 else 0.0), (0.5 if y1 == y2 else 0.0)
        return x1 - half_x, y1 - half_y, x2 + half_x, y2 + half_y

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        return {"points": tuple(move(x, y) for x, y in self.points)}

    def geometry_to_json(self) -> dict[str, Any]:
        return {"points": [[json_number(x), json_number(y)] for x, y in self.points]}

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        return {"points": value["points"]}


@dataclass(frozen=True, slots=True)
class Triangle(_Path):
    """The outline of a triangle: `Triangle([(x, y), (x, y), (x, y)])`, not all on one line."""

    shape: ClassVar[str] = "triangle"
    words: ClassVar[tuple[str, str]] = ("with", "triangle")
    point_limits: ClassVar[tuple[int, int]] = (3, 3)

    def validate(self, who: str) -> None:
        super(Triangle, self).validate(who)
        (x1, y1), (x2, y2), (x3, y3) = self.points
        if (x2 - x1) * (y3 - y1) == (x3 - x1) * (y2 - y1):
            raise RegionError(f"{who}: has no area; its three points lie on one line")

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        draw_path(pen, [*self.points, self.points[0]], ink, self.line_width, left, top)


@dataclass(frozen=True, slots=True)
class Scribble(_Path):
    """A free-hand line through 2 to 10,000 points: `Scribble([(x, y), ...])`."""

    shape: ClassVar[str] = "scribble"
    words: ClassVar[tuple[str, str]] = ("with", "scribble")

    def validate(self, who: str) -> None:
        super(Scribble, self).validate(who)
        if all(each == self.points[0] for each in self.points):
            raise RegionError(f"{who}: has no length; all its points are the same")

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        draw_path(pen, self.points, ink, self.line_width, left, top)
        draw_joints(pen, self.points, ink, self.line_width, left, top)
