"""Strokes: paths, joints, ellipses and outlines, as a Pillow pen or as arrays of pixels.

Coordinates are truncated to whole pixels, as in the original. The functions take geometry in pixels
and the left and top of the surface on the image. They do not know regions, colours or blending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vip_llava.regions.geometry import Bounds, Point2, Polygon, clip_segments
from vip_llava.regions.rle import Rle

__all__ = [
    "Ink",
    "Pen",
    "Pixels",
    "draw_joints",
    "draw_path",
    "ellipse_pixels",
    "outline_of_mask",
    "outline_of_polygons",
    "shifted_polygon",
]

Pen: TypeAlias = ImageDraw.ImageDraw
Ink: TypeAlias = int | tuple[int, ...]
Pixels: TypeAlias = npt.NDArray[np.uint8]

_SHARP_BEND = math.cos(math.radians(25))  # sharper bends of a path get a round joint


def draw_path(pen: Pen, path: Sequence[Point2], ink: Ink, width: int, left: int, top: int) -> None:
    """Draw connected straight lines.

    Pillow walks along every pixel of a line, also those outside the surface, so lines that reach
    far outside are clipped first.
    """
    size = pen.im.size
    margin = 64 + 2 * width
    shifted = [(int(x) - left, int(y) - top) for x, y in path]
    xs, ys = zip(*shifted, strict=True)
    low, high = min(*xs, *ys), (max(xs) - size[0], max(ys) - size[1])
    if low > -margin and max(high) < margin:
        pen.line(shifted, fill=ink, width=width)
        return
    points = np.array(shifted, dtype=np.float64)
    frame = (-margin, -margin, size[0] + margin, size[1] + margin)
    starts, ends, kept = clip_segments(points[:-1], points[1:], frame)
    for start, end in zip(starts[kept].tolist(), ends[kept].tolist(), strict=True):
        pen.line([tuple(start), tuple(end)], fill=ink, width=width)


def draw_joints(
    pen: Pen, path: Sequence[Point2], ink: Ink, width: int, left: int, top: int
) -> None:
    """Round off the sharp bends of a path; lines thinner than 3 pixels need no joint."""
    if width < 3:
        return
    before, after = width // 2, (width - 1) // 2
    for (x0, y0), (x1, y1), (x2, y2) in zip(path, path[1:], path[2:], strict=False):
        ax, ay, bx, by = x1 - x0, y1 - y0, x2 - x1, y2 - y1
        if ax * bx + ay * by < _SHARP_BEND * math.sqrt((ax * ax + ay * ay) * (bx * bx + by * by)):
            x, y = int(x1) - left, int(y1) - top
            pen.ellipse((x - before, y - before, x + after, y + after), fill=ink)


def shifted_polygon(flat: Sequence[float], left: int, top: int) -> list[int]:
    """A flat polygon in whole pixels of a surface that begins at (left, top)."""
    result = [int(number) for number in flat]
    if left:
        result[0::2] = [x - left for x in result[0::2]]
    if top:
        result[1::2] = [y - top for y in result[1::2]]
    return result


def ellipse_pixels(box: Bounds, size: tuple[int, int], *, line_width: int | None) -> Pixels:
    """uint8 [height, width] of an image of `size`: an ellipse that is too large for Pillow's pen.

    `line_width` None fills it.
    """
    x1, y1, x2, y2 = box
    center_x, center_y, across, down = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    columns = np.arange(size[0]) + 0.5 - center_x
    rows = np.arange(size[1])[:, None] + 0.5 - center_y
    area = (columns / across) ** 2 + (rows / down) ** 2 <= 1
    if line_width is not None and line_width < min(across, down):
        inner = (columns / (across - line_width)) ** 2 + (rows / (down - line_width)) ** 2
        area &= inner > 1
    return area.astype(np.uint8)


def outline_of_mask(rle: Rle, reach: int) -> tuple[Pixels, int, int]:
    """The border pixels of a mask, dilated by `reach`: uint8 [h, w], left, top."""
    area, left, top = rle.crop(margin=reach)
    # Inner pixels have all four neighbours inside. The flat array works as in `dilate`.
    pixels, row = area.reshape(-1), area.shape[1]
    inner = pixels[: -2 * row] & pixels[2 * row :]
    inner &= pixels[row - 1 : -row - 1]
    inner &= pixels[row + 1 : -row + 1]
    inner ^= 1
    pixels[row:-row] &= inner
    return dilate(area, reach), left, top


def outline_of_polygons(polygons: Sequence[Polygon], reach: int) -> tuple[Pixels, int, int]:
    """The one-pixel outlines of polygons, dilated by `reach`: uint8 [h, w], left, top.

    Dilation equals the many shifted outlines that the original draws.
    """
    xs = [int(x) for flat in polygons for x in flat[0::2]]
    ys = [int(y) for flat in polygons for y in flat[1::2]]
    left, top = min(xs) - reach, min(ys) - reach
    tile = Image.new("L", (max(xs) + reach + 1 - left, max(ys) + reach + 1 - top))
    pen = ImageDraw.Draw(tile)
    for flat in polygons:
        pen.polygon(shifted_polygon(flat, left, top), outline=1)
    return dilate(np.array(tile), reach), left, top


def dilate(pixels: Pixels, reach: int) -> Pixels:
    """Replace each pixel by the maximum of the square of `reach` pixels around it, in place.

    Works on the flat array in few steps. A margin of `reach` empty pixels on every side keeps one
    row from running into the next.
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
