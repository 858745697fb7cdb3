"""Contour and Mask: areas given by polygons or by a run-length mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.geometry import Bounds, Polygon
from vip_llava.regions.rle import Rle
from vip_llava.regions.shapes.base import (
    Frame,
    Move,
    Region,
    Size,
    assign,
    json_number,
)
from vip_llava.regions.strokes import (
    Ink,
    Pen,
    Pixels,
    outline_of_mask,
    outline_of_polygons,
    shifted_polygon,
)

__all__ = ["Contour", "Mask"]


@dataclass(frozen=True, slots=True)
class _Area(Region):
    """A shape given by polygons or by a run-length mask, exactly one of the two."""

    polygons: tuple[Polygon, ...] | None = None
    rle: Rle | None = None

    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = (("polygons",), ("rle",))

    def validate(self, who: str) -> None:
        if (self.polygons is None) == (self.rle is None):
            raise RegionError(f"{who}: give either polygons or rle")
        if self.polygons is not None:
            assign(self, "polygons", geometry.polygons(self.polygons, who))
            return
        self._check_rle_frame(self.frame)
        assign(self, "rle", Rle.parse(self.rle, who))

    def span(self) -> Bounds:
        if self.rle is not None:
            x1, y1, x2, y2 = self.rle.bounds()
            return float(x1), float(y1), float(x2), float(y2)
        parts = self.polygons or ()
        xs, ys = [part[0::2] for part in parts], [part[1::2] for part in parts]
        return min(map(min, xs)), min(map(min, ys)), max(map(max, xs)), max(map(max, ys))

    def to_frame(self, frame: Frame, size: Size) -> Self:
        """The same region in another frame. Raises RegionError for an rle in the unit frame."""
        if self.rle is not None:
            self._check_rle_frame(frame)
        return super(_Area, self).to_frame(frame, size)

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        moved = []
        for part in self.polygons or ():
            pairs = zip(part[0::2], part[1::2], strict=True)
            moved.append(tuple(number for x, y in pairs for number in move(x, y)))
        return {"polygons": tuple(moved)}

    def geometry_to_json(self) -> dict[str, Any]:
        if self.rle is not None:
            return {"rle": self.rle.to_json()}
        parts = self.polygons or ()
        return {"polygons": [[json_number(number) for number in part] for part in parts]}

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        return {key: value[key] for key in ("polygons", "rle") if key in value}

    def completed(self, size: Size) -> Self:
        """The region itself; RegionError if its rle is for an image of another size."""
        if self.rle is not None and self.rle.size != (size[1], size[0]):
            height, width = self.rle.size
            raise RegionError(
                f"{self.label}: its rle is for an image of {width} x {height} pixels (width x "
                f"height), but this one has {size[0]} x {size[1]}"
            )
        return self

    def clipped(self, size: Size) -> Self:
        parts = geometry.clip_polygons(self.polygons or (), float(size[0]), float(size[1]))
        if not parts:
            raise RegionError(
                f"{self.label}: no part of it lies inside the image of {size[0]} x {size[1]}"
            )
        return self.changed(polygons=parts)

    def _check_rle_frame(self, frame: Frame) -> None:
        if frame != "pixel":
            raise RegionError(f'{self.label}: an rle counts pixels; its frame must be "pixel"')


@dataclass(frozen=True, slots=True)
class Contour(_Area):
    """The outline of an area: `Contour(polygons=[[x, y, ...], ...])` or `Contour(rle={...})`.

    width: how far the line reaches to either side of the outline, so that it is 2 x width + 1
    pixels thick (the meaning it has in the training images).
    """

    shape: ClassVar[str] = "contour"
    words: ClassVar[tuple[str, str]] = ("with", "mask contour")
    default_width: ClassVar[int | None] = 1

    def pixels(self, size: Size) -> tuple[Pixels, int, int]:
        """The one-pixel outline, dilated by the width. May reach over the image's border."""
        if self.rle is not None:
            return outline_of_mask(self.rle, self.line_width)
        return outline_of_polygons(self.polygons or (), self.line_width)


@dataclass(frozen=True, slots=True)
class Mask(_Area):
    """A filled area: `Mask(polygons=[[x, y, ...], ...])` or `Mask(rle={...})`."""

    shape: ClassVar[str] = "mask"
    words: ClassVar[tuple[str, str]] = ("with", "mask")
    default_width: ClassVar[int | None] = None
    default_alpha: ClassVar[int] = 128

    def painted_span(self) -> Bounds:
        return self.span()

    def paints_each_pixel_once(self) -> bool:
        return len(self.polygons or ()) == 1

    def pixels(self, size: Size) -> tuple[Pixels, int, int] | None:
        return None if self.rle is None else self.rle.crop()

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        for polygon in self.polygons or ():
            pen.polygon(shifted_polygon(polygon, left, top), fill=ink)
