"""Box and Ellipse: shapes given by the corners of their bounding box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.geometry import Bounds
from vip_llava.regions.shapes.base import (
    MAX_PEN_SPAN,
    Move,
    Region,
    Size,
    assign,
    json_number,
)
from vip_llava.regions.strokes import Ink, Pen, Pixels, ellipse_pixels

__all__ = ["Box", "Ellipse"]


@dataclass(frozen=True, slots=True)
class _Corners(Region):
    """A shape given by the corners of its box: left, top, right, bottom."""

    x1: float
    y1: float
    x2: float
    y2: float

    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = (("box",),)

    def validate(self, who: str) -> None:
        for name in ("x1", "y1", "x2", "y2"):
            assign(self, name, geometry.number(getattr(self, name), name, who))
        corners = f"({self.x1:g}, {self.y1:g}, {self.x2:g}, {self.y2:g})"
        if self.x1 > self.x2 or self.y1 > self.y2:
            raise RegionError(
                f"{who}: the corners are reversed {corners}; give left, top, right, bottom"
            )
        if self.x1 == self.x2 or self.y1 == self.y2:
            raise RegionError(f"{who}: has no area {corners}")

    def span(self) -> Bounds:
        return self.x1, self.y1, self.x2, self.y2

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        (x1, y1), (x2, y2) = move(self.x1, self.y1), move(self.x2, self.y2)
        return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}

    def geometry_to_json(self) -> dict[str, Any]:
        return {"box": [json_number(part) for part in self.span()]}

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        box = value["box"]
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            raise RegionError(f"{who}: box must be [x1, y1, x2, y2], not {geometry.brief(box)}")
        return dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))


@dataclass(frozen=True, slots=True)
class Box(_Corners):
    """A rectangle: `Box(x1, y1, x2, y2)` with left < right and top < bottom. The line lies inside."""

    shape: ClassVar[str] = "box"
    words: ClassVar[tuple[str, str]] = ("within", "rectangle")

    def bars(self, size: Size) -> list[tuple[int, int, int, int]]:
        """The four sides. The inside of a large box costs nothing this way."""
        width = self.line_width
        # Coordinates are truncated to whole pixels, and both edges belong to the box, as in the
        # original. A box up to the image's border (x2 = width) ends at the last pixel, closed.
        x1, y1 = int(self.x1), int(self.y1)
        x2, y2 = min(int(self.x2) + 1, size[0]), min(int(self.y2) + 1, size[1])
        left, top, right, bottom = x1 + width, y1 + width, x2 - width, y2 - width
        if left >= right or top >= bottom:
            return [(x1, y1, x2, y2)]
        return [
            (x1, y1, x2, top),
            (x1, bottom, x2, y2),
            (x1, top, left, bottom),
            (right, top, x2, bottom),
        ]

    def clipped(self, size: Size) -> Self:
        x1, y1, x2, y2 = self.bounds(size)
        return self.changed(x1=x1, y1=y1, x2=x2, y2=y2)


@dataclass(frozen=True, slots=True)
class Ellipse(_Corners):
    """The ellipse inscribed in a box: `Ellipse(x1, y1, x2, y2)`. The line lies inside."""

    shape: ClassVar[str] = "ellipse"
    words: ClassVar[tuple[str, str]] = ("within", "ellipse")

    def painted_span(self) -> Bounds:
        return self.span()

    def paints_each_pixel_once(self) -> bool:
        return True

    def pixels(self, size: Size) -> tuple[Pixels, int, int] | None:
        if max(self.x2 - self.x1, self.y2 - self.y1) <= MAX_PEN_SPAN:
            return None
        return ellipse_pixels(self.span(), size, line_width=self.line_width), 0, 0

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        x1, y1, x2, y2 = map(int, self.span())
        box = (x1 - left, y1 - top, x2 - left, y2 - top)
        pen.ellipse(box, outline=ink, width=self.line_width)
