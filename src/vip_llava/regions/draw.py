"""Draw regions on an image as the original does: the same pixels for the same input, every time.

Each region is drawn on a mask of the area it touches, and its colour is blended into the image
through that mask, so the cost grows with the mark and not with the image. Later regions lie over
earlier ones. Nothing here is random. The module knows no shapes (`regions.shapes`), files or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vip_llava.errors import RegionError
from vip_llava.regions.colors import rgb
from vip_llava.regions.resolve import resolve
from vip_llava.regions.shapes.base import MAX_PEN_SPAN, Region, Size

__all__ = ["draw", "draw_resolved", "opacity_mask"]

_BLOCK = 64
_SMALL_MASK = 16 * _BLOCK * _BLOCK  # pixels of a mask that is pasted at once


def draw(image: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """A new RGB image of the same size with the regions drawn on it, in their order.

    Resolves the regions first. Raises RegionError.
    """
    return draw_resolved(image, resolve(regions, image.size).regions)


def draw_resolved(image: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """Like `draw`, for regions that `resolve` returned for this image's size."""
    canvas = image.copy() if image.mode == "RGB" else image.convert("RGB")
    for region in regions:
        if region.alpha:  # `resolve` notes a region that is invisible on request
            _draw_one(canvas, region, rgb(region.color or "red"), region.alpha)
    return canvas


def _draw_one(canvas: Image.Image, region: Region, color: tuple[int, int, int], alpha: int) -> None:
    bars = region.bars(canvas.size)
    if bars is not None:
        for bar in bars:
            left, top, right, bottom = bar
            opacity = Image.new("L", (right - left, bottom - top), alpha) if alpha < 255 else None
            canvas.paste(color, bar, opacity)
        return
    if _blends_directly(region, canvas.size):
        region.paint(ImageDraw.Draw(canvas, "RGBA"), (*color, alpha), 0, 0)
        return
    if not _paste(canvas, color, *opacity_mask(region, canvas.size, alpha)):
        raise RegionError(
            f"{region.label}: none of its line lies inside the image of "
            f"{canvas.size[0]} x {canvas.size[1]} pixels; nothing would be seen"
        )


def _blends_directly(region: Region, size: Size) -> bool:
    """Whether Pillow can blend the shape into the image without a mask.

    It must touch no pixel twice and lie inside. A test compares the result with that of a mask.
    """
    if not region.paints_each_pixel_once():
        return False
    x1, y1, x2, y2 = region.span()
    small = max(x2 - x1, y2 - y1) <= MAX_PEN_SPAN
    return x1 >= 0 and y1 >= 0 and x2 < size[0] and y2 < size[1] and small


def opacity_mask(region: Region, size: Size, alpha: int) -> tuple[Image.Image, int, int]:
    """The region's opacity mask with its left and top on an image of `size`.

    Mode "L"; opaque masks have mode "1", which Pillow pastes six times faster.
    """
    mode, ink = ("1", 255) if alpha == 255 else ("L", alpha)
    found = region.pixels(size)
    if found is not None:
        pixels, left, top = found
        pixels *= np.uint8(ink)
        height, width = pixels.shape
        raw = "1;8" if mode == "1" else "L"
        return Image.frombuffer(mode, (width, height), pixels, "raw", raw, 0, 1), left, top
    x1, y1, x2, y2 = region.painted_span()
    left, top = max(int(x1), 0), max(int(y1), 0)
    right, bottom = min(int(x2) + 1, size[0]), min(int(y2) + 1, size[1])
    mask = Image.new(mode, (max(right - left, 1), max(bottom - top, 1)))
    region.paint(ImageDraw.Draw(mask), ink, left, top)
    return mask, left, top


def _paste(
    canvas: Image.Image, color: tuple[int, int, int], mask: Image.Image, left: int, top: int
) -> bool:
    """Blend `color` into the canvas through an opacity mask; False if no pixel is visible.

    A large mask of a thin line is mostly empty, so it is pasted in blocks and empty ones are skipped.
    """
    room = (-left, -top, canvas.width - left, canvas.height - top)
    within = max(room[0], 0), max(room[1], 0), min(room[2], mask.width), min(room[3], mask.height)
    if within != (0, 0, mask.width, mask.height):
        if within[0] >= within[2] or within[1] >= within[3]:
            return False
        mask, left, top = mask.crop(within), left + within[0], top + within[1]
    width, height = mask.size
    # Mode "1" is so fast that only very large masks are worth the search for empty blocks.
    if width * height <= (_SMALL_MASK if mask.mode == "L" else 4 * _SMALL_MASK):
        if mask.getbbox() is None:
            return False
        canvas.paste(color, (left, top, left + width, top + height), mask)
        return True
    visible = False
    for y in range(0, height, _BLOCK):
        for x in range(0, width, _BLOCK):
            block = mask.crop((x, y, min(x + _BLOCK, width), min(y + _BLOCK, height)))
            if block.getbbox() is None:
                continue
            visible = True
            at = left + x, top + y
            canvas.paste(color, (*at, at[0] + block.width, at[1] + block.height), block)
    return visible
