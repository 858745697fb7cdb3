"""Complete regions for one image: pixel frame, ids, colours, opacity, widths and radii.

Resolved regions have no missing field, so drawing them again gives the same pixels. Parts outside
the image are clipped (box, contour, mask) or not drawn (shapes without a clipped form); `notes`
reports both. This module knows image sizes, not images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vip_llava.errors import RegionError
from vip_llava.regions.colors import PALETTE, color_name
from vip_llava.regions.shapes.base import ANCHOR, Region, Size, check_size

__all__ = ["MAX_REGIONS", "Resolution", "resolve", "resolve_together"]

MAX_REGIONS = 1000


@dataclass(frozen=True, slots=True)
class Resolution:
    """`regions`: complete, in the pixel frame of an image of `size`. `notes`: what was changed."""

    regions: tuple[Region, ...]
    notes: tuple[str, ...]
    size: Size


def resolve(regions: Sequence[Region], size: Size) -> Resolution:
    """Complete regions for an image of `size` (width, height) in pixels.

    Missing ids become the lowest free numbers "1", "2", ...; missing colours the first palette
    colours that no other region has; missing alpha, width and radius the defaults, scaled with the
    longer side over 336. Resolving again changes nothing. Raises RegionError for duplicate ids and
    for a region that lies outside the image.
    """
    return resolve_together([(regions, size)])[0]


def resolve_together(images: Sequence[tuple[Sequence[Region], Size]]) -> tuple[Resolution, ...]:
    """Resolve the regions of several images, given as pairs (regions, size of the image).

    Ids and assigned colours are unique across all images, so that a phrase names one region only.
    """
    together: list[Region] = []
    for regions, size in images:
        check_size(size)
        _check_types(regions)
        together += regions
    notes: list[str] = []
    names = zip(_ids(together), _colors(together, notes), strict=True)
    resolved = []
    for regions, size in images:
        resolved.append(_resolution(regions, size, names, notes))
        notes = []  # the notes on colours belong to the first image
    return tuple(resolved)


def _check_types(regions: Sequence[Region]) -> None:
    for each in regions:
        if not isinstance(each, Region):
            raise RegionError(f"a region must be a Box, Ellipse, ..., not {type(each).__name__}")
    if len(regions) > MAX_REGIONS:
        raise RegionError(f"{len(regions)} regions on one image; the limit is {MAX_REGIONS}")


def _resolution(
    regions: Sequence[Region], size: Size, names: Iterator[tuple[str, str]], notes: list[str]
) -> Resolution:
    resolved = []
    for region in regions:
        id_, color = next(names)
        defaults = _style_defaults(region, size) | region.defaults(size)
        complete = region.changed(id=id_, color=color, **defaults).to_frame("pixel", size)
        placed, note = _fit(complete.completed(size), size, given_frame=region.frame)
        resolved.append(placed)
        notes += [note] if note else []
        if placed.alpha == 0:
            notes.append(f"{placed.label}: alpha 0 makes it invisible")
    return Resolution(tuple(resolved), tuple(notes), size)


def _ids(regions: Sequence[Region]) -> list[str]:
    given = [region.id for region in regions if region.id is not None]
    taken = set(given)
    if len(taken) != len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise RegionError(f"two regions have the id {twice!r}; ids must differ")
    free = (str(number) for number in range(1, 2 * len(regions) + 1) if str(number) not in taken)
    return [region.id if region.id is not None else next(free) for region in regions]


def _colors(regions: Sequence[Region], notes: list[str]) -> list[str]:
    """A colour for each region. RGB values of named colours become the name."""
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


def _style_defaults(region: Region, size: Size) -> dict[str, object]:
    """Alpha and width if they are missing.

    The training images have an alpha of 96..255 for lines and dots and 48..128 for masks; the
    defaults are the clearly visible ends of both.
    """
    defaults: dict[str, object] = {}
    if region.alpha is None:
        defaults["alpha"] = region.default_alpha
    if region.width is None and region.default_width is not None:
        defaults["width"] = max(1, int(region.default_width * max(size) / ANCHOR))
    return defaults


def _fit(region: Region, size: Size, *, given_frame: str) -> tuple[Region, str | None]:
    """The region clipped to its image, and a note if a part of it lies outside."""
    x1, y1, x2, y2 = region.span()
    if 0 <= x1 < size[0] and 0 <= y1 < size[1] and x2 <= size[0] and y2 <= size[1]:
        return region, None
    x1, y1, x2, y2 = region.extent(size)
    spans = f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
    if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
        hint = (
            "; in the frame unit, coordinates inside the image are 0 to 1"
            if given_frame == "unit"
            else ""
        )
        raise RegionError(
            f"{region.label}: lies outside the image: it spans {spans}, "
            f"the image (0, 0) to ({size[0]}, {size[1]}){hint}"
        )
    clipped = region.clipped(size)
    what = "was cut off" if clipped is not region else "is not drawn"
    return clipped, (
        f"{region.label}: the part outside the image {what}: it spanned {spans}, "
        f"the image spans (0, 0) to ({size[0]}, {size[1]})"
    )
