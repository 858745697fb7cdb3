"""Focal views: square crops of the drawn image around each region, for models with two views.

A small vision tower reduces a whole photo to a coarse grid; a focal view shows the marked place and
its surroundings at the photo's own resolution. Both views show the mark. This module does not know
tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vip_llava.errors import PhraseError
from vip_llava.regions import (
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Triangle,
    draw_resolved,
)
from vip_llava.regions.phrases import phrase, wording

# Shapes whose size is that of the marked object, and the area ratio from which one counts as bigger.
_SIZED = (Box, Contour, Ellipse, Mask, Triangle)
_BIGGER = 1.5


@dataclass(frozen=True)
class FocalSettings:
    """How focal squares are chosen, drawn and described in the prompt.

    Args:
        scale: side of the square over the region's longer side.
        point_share: side over the image's longer side for an arrow (around its tip), and at least
            that for a point: both say where an object is, but not how large.
        minimum: smallest side in pixels of the image; a tiny object is known by its surroundings.
        named: the prompt names each square's region and place in front of it (`view_captions`).
        ranked: with `named`, several squares are also ranked from the left and from the top.
        told: a sentence behind each of several squares says how its region lies (`view_remarks`).
        fine: the marks of a square are drawn again, as thin as on the whole image (`fine_marks`).
    """

    scale: float = 1.6
    point_share: float = 0.15
    minimum: float = 56.0
    named: bool = False
    ranked: bool = False
    fine: bool = False
    told: bool = False


def view_captions(
    regions: Sequence[Region], size: tuple[int, int], *, ranked: bool = False
) -> list[str]:
    """For each focal view: the words for its region, and its place in percent of the image.

    "within the red rectangle, left 12, top 30, right 45, bottom 80: ". With `ranked`, several are also
    ranked by their centres: "..., bottom 80, 1 of 2 from the left, 2 of 2 from the top: ". Regions that
    words can't tell apart are named by their shape alone; their places still differ.
    """
    bounds = [region.bounds(size) for region in regions]
    across = _ranks([x1 + x2 for x1, _, x2, _ in bounds])
    down = _ranks([y1 + y2 for _, y1, _, y2 in bounds])
    captions = []
    for index, (region, (x1, y1, x2, y2)) in enumerate(zip(regions, bounds, strict=True)):
        places = (x1 / size[0], y1 / size[1], x2 / size[0], y2 / size[1])
        sides = zip(("left", "top", "right", "bottom"), places, strict=True)
        facts = [f"{side} {round(100 * share)}" for side, share in sides]
        if ranked and len(regions) > 1:
            facts.append(f"{across[index]} of {len(regions)} from the left")
            facts.append(f"{down[index]} of {len(regions)} from the top")
        captions.append(f"{_words(region, regions)}, {', '.join(facts)}: ")
    return captions


def view_remarks(regions: Sequence[Region], size: tuple[int, int]) -> list[str]:
    """For each of several focal views: a sentence behind it that says how its region lies.

    For two: "The object within the red rectangle is to the left of and above the object within the
    lime rectangle."; also bigger or smaller, where both regions have a size. For more, each is ranked:
    "The object within the red rectangle is 1 of 4 from the left and 3 of 4 from the top." The answer to
    a question about a region thus directly follows its name and its view. A single region has "".
    """
    centres = [centre(region, size) for region in regions]
    names = [f"the object {_words(region, regions)}" for region in regions]
    if len(regions) < 2:
        return [""] * len(regions)
    if len(regions) == 2:
        facts = [
            _joined(_compared(regions, centres, i, size)) + f" {names[1 - i]}" for i in range(2)
        ]
    else:
        across, down = (_ranks([centre[axis] for centre in centres]) for axis in (0, 1))
        facts = [
            f"{across[i]} of {len(regions)} from the left and {down[i]} of {len(regions)} from the top"
            for i in range(len(regions))
        ]
    return [f"T{name[1:]} is {fact}." for name, fact in zip(names, facts, strict=True)]


def _compared(
    regions: Sequence[Region],
    centres: Sequence[tuple[float, float]],
    index: int,
    size: tuple[int, int],
) -> list[str]:
    """How region `index` of two lies to the other; "at the place of" if both centres are equal."""
    (x, y), (other_x, other_y) = centres[index], centres[1 - index]
    words = []
    if x != other_x:
        words.append("to the left of" if x < other_x else "to the right of")
    if y != other_y:
        words.append("above" if y < other_y else "below")
    if all(isinstance(region, _SIZED) for region in regions):
        bounds = [region.bounds(size) for region in (regions[index], regions[1 - index])]
        mine, other = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in bounds)
        if max(mine, other) >= _BIGGER * min(mine, other):
            words.append("bigger than" if mine > other else "smaller than")
    return words or ["at the place of"]


def _joined(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def centre(region: Region, size: tuple[int, int]) -> tuple[float, float]:
    """Where a region points, in pixels of a (width, height) image: an arrow's tip, else its centre."""
    if isinstance(region, Arrow):
        return region.to_frame("pixel", size).tip
    x1, y1, x2, y2 = region.bounds(size)
    return (x1 + x2) / 2, (y1 + y2) / 2


def _words(region: Region, regions: Sequence[Region]) -> str:
    """The region's phrase; its shape alone where a phrase can't tell it from the others."""
    try:
        return phrase(region, regions)
    except PhraseError:
        return wording(region.shape)


def _ranks(values: Sequence[float]) -> list[int]:
    """Rank of each value, from 1; equal values share a rank."""
    return [1 + sum(other < value for other in values) for value in values]


def focal_square(
    region: Region, size: tuple[int, int], settings: FocalSettings
) -> tuple[float, float, float]:
    """Centre x, centre y and side of the focal square, in pixels of a (width, height) image."""
    share = settings.point_share * max(size)
    x1, y1, x2, y2 = region.bounds(size)
    if isinstance(region, Arrow):  # its bounds are clipped to the image, so they miss the tip
        x, y = region.to_frame("pixel", size).tip
        return x, y, max(share, settings.minimum)
    side = settings.scale * max(x2 - x1, y2 - y1)
    if isinstance(region, Point):
        side = max(side, share)
    return (x1 + x2) / 2, (y1 + y2) / 2, max(side, settings.minimum)


def fine_marks(
    photo: Image.Image, regions: Sequence[Region], square: tuple[float, float, float]
) -> Image.Image:
    """A copy of the unmarked photo with its marks drawn for a square: line widths scaled to it.

    `regions` are resolved, with widths that suit the whole image.
    """
    share = min(square[2] / max(photo.size), 1.0)
    return draw_resolved(photo, [_thinned(region, share) for region in regions])


def _thinned(region: Region, share: float) -> Region:
    looks: dict[str, Any] = {}
    if region.width is not None and not isinstance(region, Mask):
        looks["width"] = max(round(region.width * share), 1)
    if isinstance(region, Point) and region.radius is not None:
        # An elliptic dot has a horizontal and a vertical radius.
        flat = region.radius if isinstance(region.radius, tuple) else (region.radius,)
        thin = tuple(max(r * share, min(r, 2.0)) for r in flat)
        looks["radius"] = thin if len(thin) > 1 else thin[0]
    if isinstance(region, Arrow) and region.head is not None:
        looks["head"] = max(region.head * share, min(region.head, 5.0))
    return region.changed(**looks)


def focal_view(
    image: Image.Image,
    square: tuple[float, float, float],
    side: int,
    fill: tuple[int, int, int],
) -> Image.Image:
    """Crop `square` (centre x, centre y, side) from an RGB image and scale it to `side` pixels.

    The part outside the image is filled with `fill`, so that the region stays in the centre.
    """
    cx, cy, length = square
    left, top = cx - length / 2, cy - length / 2
    scale = side / length
    # The part inside the image, rounded outwards to whole output pixels.
    x1, y1 = max(left, 0.0), max(top, 0.0)
    x2, y2 = min(left + length, image.width), min(top + length, image.height)
    if x1 <= left and y1 <= top and x2 >= left + length and y2 >= top + length:
        return image.resize((side, side), Image.Resampling.BICUBIC, box=(x1, y1, x2, y2))
    view = Image.new("RGB", (side, side), fill)
    if x2 <= x1 or y2 <= y1:
        return view
    ox1, oy1 = round((x1 - left) * scale), round((y1 - top) * scale)
    ox2, oy2 = round((x2 - left) * scale), round((y2 - top) * scale)
    inside = (max(ox2 - ox1, 1), max(oy2 - oy1, 1))
    part = image.resize(inside, Image.Resampling.BICUBIC, box=(x1, y1, x2, y2))
    view.paste(part, (ox1, oy1))
    return view
