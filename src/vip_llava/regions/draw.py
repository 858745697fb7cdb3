"""Regions onto an image, as the original draws them: same pixels for the same input, every time.

Each region is drawn as a mask of its own touched area, and its colour is laid over the image
through that mask, so the cost goes with the size of the mark and not of the image. Later regions lie
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
    Size,
    Triangle,
)

__all__ = ["draw", "draw_resolved", "render"]

Pen = ImageDraw.ImageDraw
Ink = int | tuple[int, ...]
Pixels = npt.NDArray[np.uint8]
Masked = tuple[
    Image.Image, int, int
]  # opacity mask ("L" or "1"), and its left and top on the image

_BLOCK = 64
_FEW = 16 * _BLOCK * _BLOCK  # pixels of a mask that is laid in one go
_BEND = math.cos(math.radians(25))  # sharper bends of a scribble get a round joint
_HUGE = 20_000  # pixels; larger ellipses do not go through Pillow
_HEAD_ANGLE = math.radians(60)  # between an arrow's shaft and each side of its head


def draw(image: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """A new RGB image of the same size with the regions drawn on it, in their order.

    Resolves the regions first; use `render` to get them. Raises RegionError.
    """
    return render(image, regions)[0]


def render(image: Image.Image, regions: Sequence[Region]) -> tuple[Image.Image, Resolution]:
    """The drawn image, and the resolution that says what was drawn. Raises RegionError."""
    resolution = resolve(regions, image.size)
    return draw_resolved(image, resolution.regions), resolution


def draw_resolved(image: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """Like `draw`, for regions that `resolve` returned for this image's size."""
    canvas = image.copy() if image.mode == "RGB" else image.convert("RGB")
    for region in regions:
        _draw_one(canvas, region)
    return canvas


def _draw_one(canvas: Image.Image, region: Region) -> None:
    alpha = region.alpha
    if not alpha:  # asked to be invisible; `resolve` has noted it
        return
    color = rgb(region.color or "red")
    if isinstance(region, Box):
        _bars(canvas, region, color, alpha)
        visible = True
    elif _is_plain(region, canvas.size):
        _PAINTERS[type(region)](region, ImageDraw.Draw(canvas, "RGBA"), (*color, alpha), 0, 0)
        visible = True
    else:
        visible = _lay(canvas, color, *_masked(region, canvas.size, alpha))
    if not visible:
        raise RegionError(
            f"{region.label}: none of its line lies inside the image of "
            f"{canvas.size[0]} x {canvas.size[1]} pixels; nothing would be seen"
        )


def _is_plain(region: Region, size: Size) -> bool:
    """Whether Pillow may blend the shape straight into the image: it touches no pixel twice, and
    it lies inside. A test holds that this equals the way through a mask."""
    if not (
        isinstance(region, (Ellipse, Point))
        or (isinstance(region, Mask) and len(region.polygons or ()) == 1)
    ):
        return False
    x1, y1, x2, y2 = region._extent()
    return x1 >= 0 and y1 >= 0 and x2 < size[0] and y2 < size[1] and max(x2 - x1, y2 - y1) <= _HUGE


def _masked(region: Region, size: Size, alpha: int) -> Masked:
    """The region's own opacity mask. Opaque ones have mode "1", which Pillow lays six times faster."""
    mode, ink = ("1", 255) if alpha == 255 else ("L", alpha)
    found = _pixels(region, size)
    if found is not None:
        pixels, left, top = found
        pixels *= np.uint8(ink)
        height, width = pixels.shape
        raw = "1;8" if mode == "1" else "L"
        return Image.frombuffer(mode, (width, height), pixels, "raw", raw, 0, 1), left, top
    x1, y1, x2, y2 = region._extent()
    if isinstance(region, Arrow):
        across, down = zip(*_sides(region), strict=True)
        x1, y1, x2, y2 = min(x1, *across), min(y1, *down), max(x2, *across), max(y2, *down)
    reach = 0 if isinstance(region, (Ellipse, Point, Mask)) else _line_width(region) + 1
    left, top = max(int(x1) - reach, 0), max(int(y1) - reach, 0)
    right, bottom = min(int(x2) + reach + 1, size[0]), min(int(y2) + reach + 1, size[1])
    mask = Image.new(mode, (max(right - left, 1), max(bottom - top, 1)))
    _PAINTERS[type(region)](region, ImageDraw.Draw(mask), ink, left, top)
    return mask, left, top


def _lay(
    canvas: Image.Image, color: tuple[int, int, int], mask: Image.Image, left: int, top: int
) -> bool:
    """Blends `color` into the canvas through an opacity mask; False where nothing of it is seen.

    A large mask of a thin line is mostly empty, so it is laid in blocks and empty ones are skipped.
    """
    room = (-left, -top, canvas.width - left, canvas.height - top)
    within = max(room[0], 0), max(room[1], 0), min(room[2], mask.width), min(room[3], mask.height)
    if within != (0, 0, mask.width, mask.height):
        if within[0] >= within[2] or within[1] >= within[3]:
            return False
        mask, left, top = mask.crop(within), left + within[0], top + within[1]
    width, height = mask.size
    # Mode "1" is laid so fast that only very large masks are worth the search for empty blocks.
    if width * height <= (_FEW if mask.mode == "L" else 4 * _FEW):
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


def _bars(canvas: Image.Image, region: Box, color: tuple[int, int, int], alpha: int) -> None:
    """A box as four bars, so that the inside of a large one costs nothing."""
    width = _line_width(region)
    # Coordinates are cut to whole pixels, and both edges belong to the box, as in the original. A
    # box up to the image's very border (x2 = width) ends at the last pixel, so that it is closed.
    x1, y1 = int(region.x1), int(region.y1)
    x2, y2 = min(int(region.x2) + 1, canvas.width), min(int(region.y2) + 1, canvas.height)
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
    for left, top, right, bottom in bars:
        bar = left, top, right, bottom
        if alpha == 255:
            canvas.paste(color, bar)
        else:
            canvas.paste(color, bar, Image.new("L", (right - left, bottom - top), alpha))


# Painters: each draws one shape with a pen whose surface begins at (left, top) of the image.


def _ellipse(region: Region, pen: Pen, ink: Ink, left: int, top: int) -> None:
    x1, y1, x2, y2 = map(int, region._extent())
    pen.ellipse((x1 - left, y1 - top, x2 - left, y2 - top), outline=ink, width=_line_width(region))


def _point(region: Region, pen: Pen, ink: Ink, left: int, top: int) -> None:
    x1, y1, x2, y2 = map(int, region._extent())
    pen.ellipse((x1 - left, y1 - top, x2 - left, y2 - top), fill=ink)


def _filled(region: Region, pen: Pen, ink: Ink, left: int, top: int) -> None:
    assert isinstance(region, Mask)
    for flat in region.polygons or ():
        pen.polygon(_shifted(flat, left, top), fill=ink)


def _triangle(region: Region, pen: Pen, ink: Ink, left: int, top: int) -> None:
    assert isinstance(region, Triangle)
    _line(pen, [*region.points, region.points[0]], ink, _line_width(region), left, top)


def _scribble(region: Region, pen: Pen, ink: Ink, left: int, top: int) -> None:
    assert isinstance(region, Scribble)
    width = _line_width(region)
    _line(pen, region.points, ink, width, left, top)
    if width < 3:
        return
    before, after = width // 2, (width - 1) // 2
    for (x0, y0), (x1, y1), (x2, y2) in zip(
        region.points, region.points[1:], region.points[2:], strict=False
    ):
        ax, ay, bx, by = x1 - x0, y1 - y0, x2 - x1, y2 - y1
        if ax * bx + ay * by < _BEND * math.sqrt((ax * ax + ay * ay) * (bx * bx + by * by)):
            x, y = int(x1) - left, int(y1) - top
            pen.ellipse((x - before, y - before, x + after, y + after), fill=ink)


def _sides(arrow: Arrow) -> list[Point2]:
    """The two far ends of the arrow's head."""
    (tail_x, tail_y), (x, y) = arrow.tail, arrow.tip
    head, angle = arrow.head or 0.0, math.atan2(tail_y - y, tail_x - x)
    return [
        (x + head * math.cos(angle + turn), y + head * math.sin(angle + turn))
        for turn in (-_HEAD_ANGLE, _HEAD_ANGLE)
    ]


def _arrow(region: Region, pen: Pen, ink: Ink, left: int, top: int) -> None:
    assert isinstance(region, Arrow)
    width = _line_width(region)
    sides = _sides(region)
    _line(pen, [region.tail, region.tip], ink, width, left, top)
    if region.filled:
        corners = [region.tip, *sides]
        pen.polygon([(int(x) - left, int(y) - top) for x, y in corners], fill=ink)
    else:
        _line(pen, [sides[0], region.tip, sides[1]], ink, width, left, top)


def _line(pen: Pen, path: Sequence[Point2], ink: Ink, width: int, left: int, top: int) -> None:
    """A path of straight lines. Pillow walks every pixel of a line, also millions outside, so what
    is far outside is cut off first."""
    size = pen.im.size
    margin = 64 + 2 * width
    shifted = [(int(x) - left, int(y) - top) for x, y in path]
    across, down = zip(*shifted, strict=True)
    low, high = min(*across, *down), (max(across) - size[0], max(down) - size[1])
    if low > -margin and max(high) < margin:
        pen.line(shifted, fill=ink, width=width)
        return
    spots = np.array(shifted, dtype=np.float64)
    frame = (-margin, -margin, size[0] + margin, size[1] + margin)
    starts, ends, kept = clip_segments(spots[:-1], spots[1:], frame)
    for start, end in zip(starts[kept].tolist(), ends[kept].tolist(), strict=True):
        pen.line([tuple(start), tuple(end)], fill=ink, width=width)


def _shifted(flat: Sequence[float], left: int, top: int) -> list[int]:
    """A flat polygon in whole pixels of a surface that begins at (left, top)."""
    result = [int(number) for number in flat]
    if left:
        result[0::2] = [x - left for x in result[0::2]]
    if top:
        result[1::2] = [y - top for y in result[1::2]]
    return result


# Masks that are made of pixels: uint8 [height, width] of 0 and 1, with their left and top.


def _pixels(region: Region, size: Size) -> tuple[Pixels, int, int] | None:
    """The mask of a shape that is not drawn with a pen; None for the others."""
    if isinstance(region, Contour):
        return _outlined(region)
    if isinstance(region, Mask) and region.rle is not None:
        return region.rle.crop()
    if isinstance(region, (Ellipse, Point)):
        x1, y1, x2, y2 = region._extent()
        if max(x2 - x1, y2 - y1) > _HUGE:
            return _huge(region, size)
    return None


def _huge(region: Ellipse | Point, size: Size) -> tuple[Pixels, int, int]:
    """A part of an ellipse that is far larger than any image: Pillow's integers overflow there."""
    x1, y1, x2, y2 = region._extent()
    center_x, center_y, across, down = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    columns, rows = (
        np.arange(size[0]) + 0.5 - center_x,
        np.arange(size[1])[:, None] + 0.5 - center_y,
    )
    area = (columns / across) ** 2 + (rows / down) ** 2 <= 1
    width = _line_width(region)
    if isinstance(region, Ellipse) and width < min(across, down):
        area &= (columns / (across - width)) ** 2 + (rows / (down - width)) ** 2 > 1
    return area.astype(np.uint8), 0, 0


def _outlined(region: Contour) -> tuple[Pixels, int, int]:
    """The one-pixel outline, grown by the width to every side: what the original's many shifted
    outlines add up to. May reach over the image's border."""
    reach = _line_width(region)
    if region.rle is not None:
        area, left, top = region.rle.crop(margin=reach)
        # Inner pixels have all four neighbours inside; over the flat array, as in `_grown`.
        pixels, row = area.reshape(-1), area.shape[1]
        inner = pixels[: -2 * row] & pixels[2 * row :]
        inner &= pixels[row - 1 : -row - 1]
        inner &= pixels[row + 1 : -row + 1]
        inner ^= 1
        pixels[row:-row] &= inner
        return _grown(area, reach), left, top
    x1, y1, x2, y2 = map(int, region._extent())
    left, top = x1 - reach, y1 - reach
    tile = Image.new("L", (x2 + reach + 1 - left, y2 + reach + 1 - top))
    pen = ImageDraw.Draw(tile)
    for flat in region.polygons or ():
        pen.polygon(_shifted(flat, left, top), outline=1)
    return _grown(np.array(tile), reach), left, top


def _grown(pixels: Pixels, reach: int) -> Pixels:
    """Each pixel becomes the largest of the square of `reach` around it.

    In place, in few steps, each over the flat array: a margin of `reach` empty pixels on every
    side keeps one row from running into the next.
    """
    flat = pixels.reshape(-1)
    for stride in (1, pixels.shape[1]):
        covered = 0
        while covered < reach:
            step = min(2 * covered + 1, reach - covered)
            source, by = flat.copy(), step * stride
            np.maximum(flat[by:], source[:-by], out=flat[by:])
            np.maximum(flat[:-by], source[by:], out=flat[:-by])
            covered += step
    return pixels


_PAINTERS: Mapping[type[Region], Callable[[Region, Pen, Ink, int, int], None]] = {
    Ellipse: _ellipse,
    Triangle: _triangle,
    Point: _point,
    Scribble: _scribble,
    Arrow: _arrow,
    Mask: _filled,
}
