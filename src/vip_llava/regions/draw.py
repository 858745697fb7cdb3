"""Regions onto a picture, as the original draws them: same pixels for the same input, every time.

Each region is drawn as a mask of its own touched area, and its colour is laid over the picture
through that mask, so the cost goes with the size of the mark and not of the picture. Later regions lie
over earlier ones. Nothing here is random, and nothing here knows files, models or training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vip_llava.errors import RegionError
from vip_llava.regions.colors import rgb
from vip_llava.regions.geometry import Point2, clip_segments
from vip_llava.regions.resolve import Resolution, resolve
from vip_llava.regions.shapes import (
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
)

__all__ = ["draw", "draw_resolved", "render"]

Area = tuple[int, int, int, int]  # left, top, right, bottom (exclusive) in whole pixels
Painted = tuple[Image.Image, int, int]  # opacity mask ("L"), and its left and top on the picture

_BLOCK = 96
_HEAD_ANGLE = math.radians(60)  # between an arrow's shaft and each side of its head


def draw(picture: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """A new RGB picture of the same size with the regions drawn on it, in their order.

    Resolves the regions first; use `render` to get them. Raises RegionError.
    """
    return render(picture, regions)[0]


def render(picture: Image.Image, regions: Sequence[Region]) -> tuple[Image.Image, Resolution]:
    """The drawn picture, and the resolution that says what was drawn. Raises RegionError."""
    resolution = resolve(regions, picture.size)
    return draw_resolved(picture, resolution.regions), resolution


def draw_resolved(picture: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """Like `draw`, for regions that `resolve` returned for this picture's size."""
    canvas = picture.copy() if picture.mode == "RGB" else picture.convert("RGB")
    for region in regions:
        _draw_one(canvas, region)
    return canvas


def _draw_one(canvas: Image.Image, region: Region) -> None:
    alpha = region.alpha
    if not alpha:  # asked to be invisible; `resolve` has noted it
        return
    if isinstance(region, Box):
        visible = _box(canvas, region, alpha)
    else:
        mask, left, top = _PAINTERS[type(region)](region, canvas.size, alpha)
        visible = _lay(canvas, rgb(region.color or "red"), mask, left, top)
    if not visible:
        raise RegionError(
            f"{region.label}: none of its line lies inside the picture of "
            f"{canvas.size[0]} x {canvas.size[1]} pixels; nothing would be seen"
        )


def _lay(
    canvas: Image.Image, color: tuple[int, int, int], mask: Image.Image, left: int, top: int
) -> bool:
    """Blends `color` into the canvas through an opacity mask; False where the mask is empty.

    A large mask of a thin line is mostly empty, so it is laid in blocks and empty ones are skipped.
    """
    width, height = mask.size
    if width * height <= 2 * _BLOCK * _BLOCK:
        if mask.getbbox() is None:
            return False
        canvas.paste(color, (left, top, left + width, top + height), mask)
        return True
    seen = False
    for y in range(0, height, _BLOCK):
        for x in range(0, width, _BLOCK):
            block = mask.crop((x, y, min(x + _BLOCK, width), min(y + _BLOCK, height)))
            if block.getbbox() is None:
                continue
            seen = True
            at = left + x, top + y
            canvas.paste(color, (*at, at[0] + block.width, at[1] + block.height), block)
    return seen


def _line_width(region: Region) -> int:
    return max(1, int(region.width or 1))


def _tile(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Area:
    """The touched pixels inside the picture; never empty, so that a mask can be made of it."""
    x1, y1 = max(int(left), 0), max(int(top), 0)
    x2, y2 = min(int(right) + 1, size[0]), min(int(bottom) + 1, size[1])
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _mask(area: Area) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    mask = Image.new("L", (area[2] - area[0], area[3] - area[1]))
    return mask, ImageDraw.Draw(mask)


def _box(canvas: Image.Image, region: Box, alpha: int) -> bool:
    """Four bars instead of a mask of the whole box: a box is the most common and the largest mark."""
    width, color = _line_width(region), rgb(region.color or "red")
    # Coordinates are cut to whole pixels, and both edges belong to the box, as in the original.
    x1, y1 = int(region.x1), int(region.y1)
    x2, y2 = int(region.x2) + 1, int(region.y2) + 1
    inner = x1 + width, y1 + width, x2 - width, y2 - width
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        bars = [(x1, y1, x2, y2)]
    else:
        bars = [
            (x1, y1, x2, inner[1]),
            (x1, inner[3], x2, y2),
            (x1, inner[1], inner[0], inner[3]),
            (inner[2], inner[1], x2, inner[3]),
        ]
    seen = False
    for left, top, right, bottom in bars:
        bar = left, top, min(right, canvas.size[0]), min(bottom, canvas.size[1])
        if bar[0] < bar[2] and bar[1] < bar[3]:
            seen = True
            if alpha == 255:
                canvas.paste(color, bar)
            else:
                canvas.paste(color, bar, Image.new("L", (bar[2] - bar[0], bar[3] - bar[1]), alpha))
    return seen


def _ellipse(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    x1, y1, x2, y2 = map(int, region._extent())
    area = _tile(x1, y1, x2, y2, size)
    mask, pen = _mask(area)
    box = (x1 - area[0], y1 - area[1], x2 - area[0], y2 - area[1])
    pen.ellipse(box, outline=alpha, width=_line_width(region))
    return mask, area[0], area[1]


def _point(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    x1, y1, x2, y2 = map(int, region._extent())
    area = _tile(x1, y1, x2, y2, size)
    mask, pen = _mask(area)
    pen.ellipse((x1 - area[0], y1 - area[1], x2 - area[0], y2 - area[1]), fill=alpha)
    return mask, area[0], area[1]


def _triangle(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    assert isinstance(region, Triangle)
    return _lines([*region.points, region.points[0]], _line_width(region), size, alpha)


def _scribble(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    assert isinstance(region, Scribble)
    return _lines(region.points, _line_width(region), size, alpha, joint="curve")


def _arrow(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    assert isinstance(region, Arrow)
    width = _line_width(region)
    (tail_x, tail_y), (x, y) = region.tail, region.tip
    length = math.hypot(tail_x - x, tail_y - y)
    head = region.head
    if head is None:
        # Half the arrow, but no more than 24 pixels on a picture of 336, and wider than its line.
        head = max(min(0.5 * length, 24 * max(size) / 336), 2.0 * width)
    angle = math.atan2(tail_y - y, tail_x - x)
    sides = [
        (x + head * math.cos(angle + turn), y + head * math.sin(angle + turn))
        for turn in (-_HEAD_ANGLE, _HEAD_ANGLE)
    ]
    if region.filled:
        return _lines([region.tail, region.tip], width, size, alpha, head=[region.tip, *sides])
    return _lines(
        [region.tail, region.tip], width, size, alpha, more=[sides[0], region.tip, sides[1]]
    )


def _lines(
    path: Sequence[Point2],
    width: int,
    size: tuple[int, int],
    alpha: int,
    *,
    joint: str | None = None,
    head: Sequence[Point2] = (),
    more: Sequence[Point2] = (),
) -> Painted:
    """A path of straight lines, and a filled `head` or a second path (`more`) on the same mask."""
    spots = [*path, *head, *more]
    across, down = zip(*spots, strict=True)
    reach = width + 1
    x1, y1, x2, y2 = min(across), min(down), max(across), max(down)
    area = _tile(x1 - reach, y1 - reach, x2 + reach, y2 + reach, size)
    mask, pen = _mask(area)
    margin = 64 + 2 * width
    near = x1 > -margin and y1 > -margin and x2 < size[0] + margin and y2 < size[1] + margin
    for line in (path, more):
        if not line:
            continue
        for piece in [line] if near else _near(line, size, margin):
            shifted = [(int(x) - area[0], int(y) - area[1]) for x, y in piece]
            pen.line(shifted, fill=alpha, width=width, joint=joint)
    if head:
        pen.polygon([(int(x) - area[0], int(y) - area[1]) for x, y in head], fill=alpha)
    return mask, area[0], area[1]


def _near(line: Sequence[Point2], size: tuple[int, int], margin: int) -> list[list[Point2]]:
    """The parts of a path near the picture, segment by segment: Pillow walks every pixel of a line."""
    spots = np.array(line, dtype=np.float64)
    frame = (-margin, -margin, size[0] + margin, size[1] + margin)
    starts, ends, kept = clip_segments(spots[:-1], spots[1:], frame)
    pairs = zip(starts[kept].tolist(), ends[kept].tolist(), strict=True)
    return [[(a[0], a[1]), (b[0], b[1])] for a, b in pairs]


def _filled(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    assert isinstance(region, Mask)
    if region.rle is not None:
        pixels, left, top = region.rle.crop()
        return Image.fromarray(pixels * np.uint8(alpha)), left, top
    area = _tile(*region._extent(), size)
    mask, pen = _mask(area)
    for flat in region.polygons or ():
        pen.polygon(_shifted(flat, area), fill=alpha)
    return mask, area[0], area[1]


def _contour(region: Region, size: tuple[int, int], alpha: int) -> Painted:
    """The one-pixel outline, grown by the width to every side: what the original's many shifted
    outlines add up to."""
    assert isinstance(region, Contour)
    reach = _line_width(region)
    if region.rle is not None:
        pixels, left, top = region.rle.crop()
        mask = np.pad(pixels, reach + 1)
        inner = (
            mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        )
        line = mask[1:-1, 1:-1] & ~inner
        # Where the area ends at the picture's border, the outline runs along that border.
        return Image.fromarray(_grown(line * np.uint8(alpha), reach)), left - reach, top - reach
    x1, y1, x2, y2 = map(int, region._extent())
    # The mask reaches over the picture's border, where a part of the line that is not seen lies.
    area = (x1 - reach, y1 - reach, x2 + reach + 1, y2 + reach + 1)
    tile, pen = _mask(area)
    for flat in region.polygons or ():
        pen.polygon(_shifted(flat, area), outline=alpha)
    return Image.fromarray(_grown(np.array(tile), reach)), area[0], area[1]


def _shifted(flat: Sequence[float], area: Area) -> list[int]:
    """A flat polygon in the pixels of a mask."""
    left, top = area[0], area[1]
    result = [int(number) for number in flat]
    result[0::2] = [x - left for x in result[0::2]]
    result[1::2] = [y - top for y in result[1::2]]
    return result


def _grown(pixels: npt.NDArray[np.uint8], reach: int) -> npt.NDArray[np.uint8]:
    """Each pixel becomes the largest of the square of `reach` around it, in a few steps a side."""
    for turned in (pixels, pixels.T):
        covered = 0
        while covered < reach:
            step = min(2 * covered + 1, reach - covered)
            source = turned.copy()
            np.maximum(turned[step:], source[:-step], out=turned[step:])
            np.maximum(turned[:-step], source[step:], out=turned[:-step])
            covered += step
    return pixels


_PAINTERS: Mapping[type[Region], Callable[[Region, tuple[int, int], int], Painted]] = {
    Ellipse: _ellipse,
    Triangle: _triangle,
    Point: _point,
    Scribble: _scribble,
    Arrow: _arrow,
    Contour: _contour,
    Mask: _filled,
}
