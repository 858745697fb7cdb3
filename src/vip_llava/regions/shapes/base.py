"""`Region`: the fields that all shapes share, their checks, and the hooks that a shape implements.

A region carries its frame: "pixel" (of the original, EXIF-turned image; x runs 0..width, y 0..height)
or "unit" (the same as fractions 0..1; lengths such as a radius are fractions of the longer side).
Every value is validated on construction, so no later step meets a NaN, a reversed box or a polygon
that crosses itself. A region does not know the image it is on: `resolve` fills in defaults that
depend on the image size, and `draw` composes the strokes over the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, TypeAlias

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.colors import normalize_color
from vip_llava.regions.geometry import Bounds, Point2
from vip_llava.regions.strokes import Ink, Pen, Pixels

__all__ = ["ANCHOR", "MAX_WIDTH", "Frame", "Move", "Region", "Size", "check_size", "json_number"]

Frame: TypeAlias = Literal["pixel", "unit"]
Size: TypeAlias = tuple[int, int]  # (width, height) in pixels
Move: TypeAlias = Callable[[float, float], Point2]

MAX_WIDTH = 1000.0
#: Default widths and radii are given for an image whose longer side is this many pixels.
ANCHOR = 336
#: Larger geometry is not drawn with Pillow's pen alone: its 32-bit arithmetic overflows.
MAX_PEN_SPAN = 20_000
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
assign = object.__setattr__  # frozen values are normalized in __post_init__


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Fields of every shape. Use one of the subclasses in `SHAPES`.

    frame: "pixel" or "unit". color: a palette name, "#rrggbb" or (r, g, b); stored as a string.
    alpha: 0 (invisible) .. 255 (opaque). width: of the line, in pixels of the image; see `Contour`
    for its meaning there; without effect on Mask and Point. id: the name in `<region:ID>`.
    None means the default, which `resolve` fills in. Raises RegionError for any other value.

    A new shape is a subclass with the class variables below, `validate`, `span`, `mapped`,
    `geometry_to_json`, `geometry_from_json` and `paint`, plus its line in `SHAPES`. The remaining
    hooks have defaults that suit a shape drawn with a pen.
    """

    shape: ClassVar[str] = ""
    #: (preposition, noun) of the phrase: ("within", "rectangle").
    words: ClassVar[tuple[str, str]] = ("", "")
    #: Alternative sets of JSON keys, exactly one of which a region has; and optional keys.
    required_keys: ClassVar[tuple[tuple[str, ...], ...]] = ()
    optional_keys: ClassVar[tuple[str, ...]] = ()
    #: Defaults at `ANCHOR` pixels; no width for shapes without a line.
    default_width: ClassVar[int | None] = 3
    default_alpha: ClassVar[int] = 255

    frame: Frame = "pixel"
    color: str | tuple[int, int, int] | None = None
    alpha: int | None = None
    width: float | int | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not (isinstance(self.id, str) and _ID.match(self.id)):
            raise RegionError(
                f"{self.shape}: id must be 1 to 64 letters, digits, '.', '_' or '-', "
                f"not {geometry.brief(self.id)}"
            )
        who = self.label
        self._check_frame(self.frame)
        if self.color is not None:
            assign(self, "color", normalize_color(self.color, who))
        if self.alpha is not None:
            alpha = self.alpha
            if isinstance(alpha, bool) or not hasattr(alpha, "__index__") or not 0 <= alpha <= 255:
                raise RegionError(
                    f"{who}: alpha must be a whole number 0..255, not {geometry.brief(alpha)}"
                )
            assign(self, "alpha", int(alpha))
        if self.width is not None:
            assign(self, "width", geometry.length(self.width, "width", MAX_WIDTH, who))
        self.validate(who)

    @property
    def label(self) -> str:
        """The name in error messages: "region '2' (box)", or "box" without an id."""
        return self.shape if self.id is None else f"region {self.id!r} ({self.shape})"

    @property
    def line_width(self) -> int:
        """The width in whole pixels, at least 1."""
        return max(1, int(self.width or 1))

    # What a shape implements.

    def validate(self, who: str) -> None:
        """Normalize and check the geometry; RegionError messages begin with `who`."""
        raise NotImplementedError

    def span(self) -> Bounds:
        """x1, y1, x2, y2 around the geometry, in the region's own frame, unclipped."""
        raise NotImplementedError

    def mapped(self, move: Move, scale: float) -> dict[str, Any]:
        """The geometry fields with `move` applied to each point and each length times `scale`."""
        raise NotImplementedError

    def geometry_to_json(self) -> dict[str, Any]:
        """The geometry as JSON keys and values."""
        raise NotImplementedError

    @classmethod
    def geometry_from_json(cls, value: Mapping[str, Any], who: str) -> dict[str, Any]:
        """The geometry fields from JSON whose keys were already checked."""
        raise NotImplementedError

    def paint(self, pen: Pen, ink: Ink, left: int, top: int) -> None:
        """Draw a region in pixels with a pen whose surface begins at (left, top) of the image."""
        raise NotImplementedError

    def painted_span(self) -> Bounds:
        """x1, y1, x2, y2 of the pixels that `paint` may touch."""
        x1, y1, x2, y2 = self.span()
        reach = self.line_width + 1
        return x1 - reach, y1 - reach, x2 + reach, y2 + reach

    def paints_each_pixel_once(self) -> bool:
        """Whether `paint` touches no pixel twice, so that blending needs no separate mask."""
        return False

    def bars(self, size: Size) -> list[tuple[int, int, int, int]] | None:
        """Solid rectangles that make up the whole mark, or None if `paint` draws it."""
        return None

    def pixels(self, size: Size) -> tuple[Pixels, int, int] | None:
        """uint8 [height, width] of 0 and 1 with its left and top, or None if `paint` draws it."""
        return None

    def defaults(self, size: Size) -> dict[str, Any]:
        """The shape's own fields that are None, for an image of `size`; any frame."""
        return {}

    def completed(self, size: Size) -> Self:
        """The region in pixels with fields filled in that depend on its place in the image."""
        return self

    def clipped(self, size: Size) -> Self:
        """The region cut off at the image, or itself if its kind has no clipped form."""
        return self

    # What all shapes can do.

    def to_frame(self, frame: Frame, size: Size) -> Self:
        """The same region in another frame of an image of `size` (width, height) in pixels."""
        check_size(size)
        if frame == self.frame:
            return self
        self._check_frame(frame)
        width, height = size
        longest = float(max(size))
        if frame == "pixel":
            moved = self.mapped(lambda x, y: (x * width, y * height), longest)
        else:
            moved = self.mapped(lambda x, y: (x / width, y / height), 1 / longest)
        region = self.changed(frame=frame, **moved)
        if frame == "pixel" and not all(
            abs(part) <= geometry.MAX_COORDINATE for part in region.span()
        ):
            raise RegionError(f"{self.label}: reaches beyond {geometry.MAX_COORDINATE:g} pixels")
        return region

    def changed(self, **values: Any) -> Self:
        """A copy with other field values. They are not validated: the caller must pass valid ones."""
        region = object.__new__(type(self))
        for name in (field.name for field in fields(self)):
            assign(region, name, values[name] if name in values else getattr(self, name))
        return region

    def extent(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels around the geometry, also where it lies outside the image."""
        return self.to_frame("pixel", size).span()

    def bounds(self, size: Size) -> Bounds:
        """x1, y1, x2, y2 in pixels of the place pointed at, clipped to the image of `size`.

        An arrow points at a square around its tip; every other shape at its own box. Raises
        RegionError if no part of it lies inside the image.
        """
        x1, y1, x2, y2 = self.extent(size)
        cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise RegionError(
                f"{self.label}: lies outside the image of {size[0]} x {size[1]} pixels"
            )
        return cut

    def to_json(self) -> dict[str, Any]:
        """A JSON object with shape, frame, geometry, and the other fields that are set."""
        value: dict[str, Any] = {} if self.id is None else {"id": self.id}
        value |= {"shape": self.shape, "frame": self.frame, **self.geometry_to_json()}
        if self.color is not None:
            value["color"] = self.color
        if self.alpha is not None:
            value["alpha"] = self.alpha
        if self.width is not None:
            value["width"] = json_number(self.width)
        return value

    @staticmethod
    def from_json(value: object) -> Region:
        """The region of a JSON object; see `vip_llava.regions.region_from_json`."""
        from vip_llava.regions.serialize import region_from_json

        return region_from_json(value)

    def _check_frame(self, frame: object) -> None:
        if frame not in ("pixel", "unit"):
            raise RegionError(
                f'{self.label}: frame must be "pixel" or "unit", not {geometry.brief(frame)}'
            )


def check_size(size: Size) -> None:
    """Raise ValueError unless `size` is a (width, height) of at least 1 x 1 pixels."""
    width, height = size
    if not (width >= 1 and height >= 1):
        raise ValueError(f"an image's size is (width, height), each at least 1, not {size!r}")


def json_number(value: float) -> float | int:
    """A number as JSON writes it shortest: whole numbers without ".0"."""
    return int(value) if value == int(value) else value
