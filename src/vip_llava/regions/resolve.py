"""From what a user gave to what is drawn: pixels, names, colours, opacity and width for each region.

The result holds no open question: every region is in the pixel frame of one image and draws the
same again. What sticks out of the image is cut off (box, contour, mask) or drawn as far as the
image goes (the other shapes, which have no cut form of their kind); either way `notes` says so.
This module knows image sizes, not images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vip_llava.errors import RegionError
from vip_llava.regions import geometry
from vip_llava.regions.colors import PALETTE, color_name
from vip_llava.regions.shapes import (
    Arrow,
    Box,
    Contour,
    Mask,
    Point,
    Region,
    Size,
    check_size,
    default_radius,
)

__all__ = [
    "DEFAULT_ALPHA",
    "DEFAULT_WIDTH",
    "MASK_ALPHA",
    "MAX_REGIONS",
    "Resolution",
    "resolve",
    "resolve_together",
]

#: Opacity of lines and dots, and of filled masks, where none was given. The training images have
#: 96..255 and 48..128; these are the clearly visible ends of both.
DEFAULT_ALPHA = 255
MASK_ALPHA = 128
#: Line width on an image whose longer side is 336, where none was given; others in proportion.
DEFAULT_WIDTH = {"contour": 1}
_LINE = 3
ANCHOR = 336
MAX_REGIONS = 1000


@dataclass(frozen=True, slots=True)
class Resolution:
    """`regions`: in the pixel frame of an image of `size`, complete. `notes`: what was changed."""

    regions: tuple[Region, ...]
    notes: tuple[str, ...]
    size: Size


def resolve(regions: Sequence[Region], size: Size) -> Resolution:
    """Regions as they are drawn on an image of `size` (width, height) in pixels.

    Missing ids become the lowest free numbers "1", "2", ...; missing colours the first palette
    colours that no other region has; missing alpha, width and radius the defaults, scaled with the
    longer side over 336. Resolving again changes nothing. Raises RegionError for two equal ids and
    for a region of which nothing lies inside the image.
    """
    return resolve_together([(regions, size)])[0]


def resolve_together(images: Sequence[tuple[Sequence[Region], Size]]) -> tuple[Resolution, ...]:
    """The regions of several images, each with the size of its own, as `resolve` does for one.

    Ids differ over all images, and missing colours are free over all, so that words about one
    region mean no other.
    """
    everything: list[Region] = []
    for regions, size in images:
        check_size(size)
        _check_kind(regions)
        everything += regions
    notes: list[str] = []
    looks = zip(_ids(everything), _colors(everything, notes), strict=True)
    done = []
    for regions, size in images:
        done.append(_resolution(regions, size, looks, notes))
        notes = []  # those on colours are told with the first image
    return tuple(done)


def _check_kind(regions: Sequence[Region]) -> None:
    for each in regions:
        if not isinstance(each, Region):
            raise RegionError(f"a region must be a Box, Ellipse, ..., not {type(each).__name__}")
    if len(regions) > MAX_REGIONS:
        raise RegionError(f"{len(regions)} regions on one image; the limit is {MAX_REGIONS}")


def _resolution(
    regions: Sequence[Region], size: Size, looks: Iterator[tuple[str, str]], notes: list[str]
) -> Resolution:
    done = []
    for region in regions:
        name, color = next(looks)
        complete = region.changed(id=name, color=color, **_looks(region, size))
        complete = complete.to_frame("pixel", size)
        if isinstance(complete, Arrow) and complete.head is None:
            complete = complete.changed(head=_head(complete, size))
        placed, note = _placed(complete, size, unit=region.frame == "unit")
        done.append(placed)
        notes += [note] if note else []
        if placed.alpha == 0:
            notes.append(f"{placed.label}: alpha 0 makes it invisible")
    return Resolution(tuple(done), tuple(notes), size)


def _ids(regions: Sequence[Region]) -> list[str]:
    given = [region.id for region in regions if region.id is not None]
    taken = set(given)
    if len(taken) != len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise RegionError(f"two regions have the id {twice!r}; ids must differ")
    free = (str(number) for number in range(1, 2 * len(regions) + 1) if str(number) not in taken)
    return [region.id if region.id is not None else next(free) for region in regions]


def _colors(regions: Sequence[Region], notes: list[str]) -> list[str]:
    """A colour for each region; named colours get their name however they were given."""
    given = [
        None if each.color is None else color_name(each.color) or str(each.color)
        for each in regions
    ]
    free = [name for name in PALETTE if name not in given]
    missing = given.count(None)
    if missing > len(free):
        notes.append(
            f"{missing} regions without a colour, but {len(free)} free ones: colours repeat"
        )
        free += list(PALETTE) * (missing // len(PALETTE) + 1)
    fresh = iter(free)
    return [next(fresh) if color is None else color for color in given]


def _looks(region: Region, size: Size) -> dict[str, object]:
    """Alpha, width and radius where they are missing."""
    looks: dict[str, object] = {}
    if region.alpha is None:
        looks["alpha"] = MASK_ALPHA if isinstance(region, Mask) else DEFAULT_ALPHA
    if region.width is None and not isinstance(region, (Mask, Point)):
        looks["width"] = max(1, int(DEFAULT_WIDTH.get(region.shape, _LINE) * max(size) / ANCHOR))
    if isinstance(region, Point) and region.radius is None:
        radius = default_radius(size)
        looks["radius"] = radius if region.frame == "pixel" else radius / max(size)
    return looks


def _head(arrow: Arrow, size: Size) -> float:
    """Length of an arrow's head in pixels where none was given: half the arrow, but at most 24 on a
    image of 336, and broader than the line."""
    (x1, y1), (x2, y2) = arrow.tail, arrow.tip
    most = 24 * max(size) / ANCHOR
    return max(min(0.5 * math.hypot(x2 - x1, y2 - y1), most), 2.0 * (arrow.width or 1))


def _placed(region: Region, size: Size, *, unit: bool) -> tuple[Region, str | None]:
    """The region on its image, and a note where a part of it lies outside; `unit`: as it was given."""
    who = region.label
    if isinstance(region, (Contour, Mask)) and region.rle is not None:
        height, width = region.rle.size
        if (width, height) != size:
            raise RegionError(
                f"{who}: its rle is for an image of {width} x {height} pixels (width x height), "
                f"but this one has {size[0]} x {size[1]}"
            )
        return region, None
    x1, y1, x2, y2 = region._extent()
    if 0 <= x1 < size[0] and 0 <= y1 < size[1] and x2 <= size[0] and y2 <= size[1]:
        return region, None
    x1, y1, x2, y2 = region.extent(size)
    if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
        hint = "; in the frame unit, coordinates inside the image are 0 to 1" if unit else ""
        raise RegionError(
            f"{who}: lies outside the image: it spans ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}), "
            f"the image (0, 0) to ({size[0]}, {size[1]}){hint}"
        )
    if isinstance(region, Arrow):
        region.bounds(size)  # raises unless the tip is inside: an arrow must point at something
    cut = _cut(region, size)
    what = "was cut off" if cut is not region else "is not drawn"
    return cut, (
        f"{who}: the part outside the image {what}: it spanned ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}), "
        f"the image spans (0, 0) to ({size[0]}, {size[1]})"
    )


def _cut(region: Region, size: Size) -> Region:
    width, height = float(size[0]), float(size[1])
    if isinstance(region, Box):
        x1, y1, x2, y2 = region.bounds(size)
        return region.changed(x1=x1, y1=y1, x2=x2, y2=y2)
    if isinstance(region, (Contour, Mask)):
        parts = geometry.clip_polygons(region.polygons or (), width, height)
        if not parts:
            raise RegionError(
                f"{region.label}: nothing of it lies inside the image of {size[0]} x {size[1]}"
            )
        return region.changed(polygons=parts)
    return region
