"""Point: a filled dot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.geometry import Bounds, Point2
from vip_llava.regions.shapes.base import (
    ANCHOR,
    MAX_PEN_SPAN,
    MAX_WIDTH,
    Move,
    Region,
    Size,
    assign,
    json_number,
)
from vip_llava.regions.strokes import Ink, Pen, Pixels, ellipse_pixels

__all__ = ["Point"]

_DEFAULT_RADIUS = 8  # at ANCHOR pixels


@dataclass(frozen=True, slots=True)
class Point(Region):
    """A filled dot: `Point(x, y, radius=4)`.

    radius: in pixels (or, in the unit frame, of the longer side); a pair (across, down) makes an
    oval dot. The default is 8 pixels on an image of 336 and scales with the longer side.
    """

    x: float
    y: float
    radius: float | tuple[float, float] | None = None

    shape: ClassVar[str] = "point"
    words: ClassVar[tuple[str, str]] = ("at", "point")
    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = (("point",),)
    optional_keys: ClassVar[tuple[str, ...]] = ("radius",)
    default_width: ClassVar[int | None] = None

    def validate(self, who: str) -> None:
        assign(self, "x", geometry.number(self.x, "x", who))
        assign(self, "y", geometry.number(self.y, "y", who))
        if self.radius is None:
            return
        if isinstance(self.radius, (tuple, list)):
            radii = geometry.point(self.radius, "radius", who)
            assign(self, "radius", radii if radii[0] != radii[1] else radii[0])
        else:
            radii = (geometry.number(self.radius, "radius", who),) * 2
            assign(self, "radius", radii[0])
        if not all(0 < radius <= 100 * MAX_WIDTH for radius in radii):
            raise RegionError(
                f"{who}: radius must be over 0 and at most {100 * MAX_WIDTH:g}, not {self.radius!r}"
            )

    @property
    def radii(self) -> Point2:
        """Radius across and down, in the region's frame; (0, 0) if none is set."""
        if self.radius is None:
            return 0.0, 0.0
        return self.radius if isinstance(self.radius, tuple) else (self.radius, self.radius)

    def span(self) -> Bounds:
        across, down = self.radii
        return self.x - across, self.y - down, self.x + across, self.y + down

    def extent(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels around the dot, of the default radius if none is set."""
        region = self.to_frame("pixel", size)
        return region.changed(**region.defaults(size)).span()

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        x, y = move(self.x, self.y)
        across, down = self.radii
        radius: float | Point2 | None = None
        if self.radius is not None:
            radius = across * scale if across == down else (across * scale, down * scale)
        return {"x": x, "y": y, "radius": radius}

    def geometry_to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"point": [json_number(self.x), json_number(self.y)]}
        if isinstance(self.radius, tuple):
            value["radius"] = [json_number(part) for part in self.radius]
        elif self.radius is not None:
            value["radius"] = json_number(self.radius)
        return value

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        x, y = geometry.point(value["point"], "point", who)
        return {"x": x, "y": y, "radius": value.get("radius")}

    def defaults(self, size: Size) -> dict[str, Any]:
        if self.radius is not None:
            return {}
        radius = float(max(1, int(_DEFAULT_RADIUS * max(size) / ANCHOR)))
        return {"radius": radius if self.frame == "pixel" else radius / max(size)}

    def painted_span(self) -> Bounds:
        return self.span()

    def paints_each_pixel_once(self) -> bool:
        return True

    def pixels(self, size: Size) -> tuple[Pixels, int, int] | None:
        if 2 * max(self.radii) <= MAX_PEN_SPAN:
            return None
        return ellipse_pixels(self.span(), size, line_width=None), 0, 0

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        x1, y1, x2, y2 = map(int, self.span())
        pen.ellipse((x1 - left, y1 - top, x2 - left, y2 - top), fill=ink)
