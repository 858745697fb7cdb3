"""Arrow: points at the place of its tip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.geometry import Bounds, Point2
from vip_llava.regions.shapes.base import (
    ANCHOR,
    MAX_WIDTH,
    Move,
    Region,
    Size,
    assign,
    json_number,
)
from vip_llava.regions.strokes import Ink, Pen, draw_path

__all__ = ["Arrow"]

_HEAD_ANGLE = math.radians(60)  # between the shaft and each side of the head


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
    words: ClassVar[tuple[str, str]] = ("pointed to by", "arrow")
    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = (("tail", "tip"),)
    optional_keys: ClassVar[tuple[str, ...]] = ("head", "filled")

    def validate(self, who: str) -> None:
        assign(self, "tail", geometry.point(self.tail, "tail", who))
        assign(self, "tip", geometry.point(self.tip, "tip", who))
        if self.tail == self.tip:
            raise RegionError(f"{who}: has no length; tail and tip are the same point")
        if self.head is not None:
            assign(self, "head", geometry.length(self.head, "head", 100 * MAX_WIDTH, who))
        if not isinstance(self.filled, bool):
            raise RegionError(
                f"{who}: filled must be true or false, not {geometry.brief(self.filled)}"
            )

    def span(self) -> Bounds:
        (x1, y1), (x2, y2) = self.tail, self.tip
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def bounds(self, size: Size) -> Bounds:
        """A square around the tip, a fifth of the longer side wide, clipped to the image."""
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

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        head = None if self.head is None else self.head * scale
        return {"tail": move(*self.tail), "tip": move(*self.tip), "head": head}

    def geometry_to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "tail": [json_number(part) for part in self.tail],
            "tip": [json_number(part) for part in self.tip],
        }
        if self.head is not None:
            value["head"] = json_number(self.head)
        if not self.filled:
            value["filled"] = False
        return value

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        return {key: value[key] for key in ("tail", "tip", "head", "filled") if key in value}

    def completed(self, size: Size) -> Self:
        """With a head: half the arrow, at most 24 pixels at 336, at least twice the line width."""
        if self.head is not None:
            return self
        (x1, y1), (x2, y2) = self.tail, self.tip
        most = 24 * max(size) / ANCHOR
        half = 0.5 * math.hypot(x2 - x1, y2 - y1)
        return self.changed(head=max(min(half, most), 2.0 * (self.width or 1)))

    def clipped(self, size: Size) -> Self:
        self.bounds(size)  # raises unless the tip is inside: an arrow must point at something
        return self

    def painted_span(self) -> Bounds:
        x1, y1, x2, y2 = self.span()
        xs, ys = zip(*self._head_ends(), strict=True)
        reach = self.line_width + 1
        return (
            min(x1, *xs) - reach,
            min(y1, *ys) - reach,
            max(x2, *xs) + reach,
            max(y2, *ys) + reach,
        )

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        width, ends = self.line_width, self._head_ends()
        draw_path(pen, [self.tail, self.tip], ink, width, left, top)
        if self.filled:
            corners = [self.tip, *ends]
            pen.polygon([(int(x) - left, int(y) - top) for x, y in corners], fill=ink)
        else:
            draw_path(pen, [ends[0], self.tip, ends[1]], ink, width, left, top)

    def _head_ends(self) -> list[Point2]:
        """The two far ends of the head."""
        (tail_x, tail_y), (x, y) = self.tail, self.tip
        head, angle = self.head or 0.0, math.atan2(tail_y - y, tail_x - x)
        return [
            (x + head * math.cos(angle + turn), y + head * math.sin(angle + turn))
            for turn in (-_HEAD_ANGLE, _HEAD_ANGLE)
        ]
