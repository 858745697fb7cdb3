"""Convert every pixel mode of Pillow, and arrays, to RGB.

Transparency is flattened on white, as viewers do; the colours of transparent pixels are arbitrary.
16-bit values are scaled, not clipped. Colour profiles are ignored, as in the models' training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vip_llava.errors import ImageError

__all__ = ["array_to_rgb", "to_rgb"]

Bytes = npt.NDArray[np.uint8]
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_ARRAY_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Rounding in a user's arithmetic may exceed 0..1 by this much.
_SLACK = 1e-3


def to_rgb(image: Image.Image, *, from_file: bool) -> Image.Image:
    """A new RGB image without metadata from a loaded image of any mode.

    `from_file`: 16-bit values span 0..65535; otherwise `_levels` infers their range.

    Raises:
        ImageError: a mode or values without a unique meaning as colours.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        rgb = _deep_to_rgb(image, from_file)
    elif image.has_transparency_data and image.mode != "CMYK":
        straight = _PREMULTIPLIED.get(image.mode)
        rgb = _flatten(image.convert(straight) if straight else image)
    else:
        rgb = image.copy() if image.mode == "RGB" else image.convert("RGB")
    # Drop profiles, texts and the EXIF orientation, which was already applied.
    rgb.info = {}
    return rgb


def array_to_rgb(array: npt.NDArray[Any]) -> Image.Image:
    """A new RGB image from an array [H, W] or [H, W, 1 | 3 | 4] (RGB or RGBA).

    Raises:
        ImageError: another shape or dtype, no pixels, or values out of range.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in _ARRAY_MODES:
        channels_first = array.ndim == 3 and array.shape[0] in _ARRAY_MODES
        hint = "; move the channels last with .transpose(1, 2, 0)" if channels_first else ""
        raise ImageError(
            f"an image array must have the shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], "
            f"not {list(array.shape)}{hint}"
        )
    if 0 in array.shape:
        raise ImageError(f"an array of shape {list(array.shape)} has no pixels")
    levels = _levels(array)
    mode = _ARRAY_MODES[levels.shape[2]]
    pixels = levels[..., 0] if mode == "L" else levels
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), from_file=False)


def _flatten(image: Image.Image) -> Image.Image:
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, (255, 255, 255))
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def _deep_to_rgb(image: Image.Image, from_file: bool) -> Image.Image:
    """RGB from one channel with more than 8 bits."""
    values = np.asarray(image)
    sixteen = from_file and image.mode.startswith("I;16")
    levels = _from_sixteen_bits(values) if sixteen else _levels(values)
    key = image.info.get("transparency")
    if isinstance(key, int):
        levels = np.where(values == key, np.uint8(255), levels)
    return Image.fromarray(levels).convert("RGB")


def _levels(values: npt.NDArray[Any]) -> Bytes:
    """Bytes from numbers of any dtype. If the dtype does not determine the range, the values do.

    Integers up to 255 are levels, up to 65535 16-bit values. Floats up to 1 are fractions, up to 255
    levels. The other interpretation would give a black image.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ImageError(f"an image array can't have the dtype {values.dtype}; use uint8")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        return _from_fractions(values, float(low), float(high))
    if low < 0 or high > 65535:
        raise ImageError(f"the image's values {low}..{high} are neither 0..255 nor 0..65535")
    return values.astype(np.uint8) if high <= 255 else _from_sixteen_bits(values)


def _from_sixteen_bits(values: npt.NDArray[Any]) -> Bytes:
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _from_fractions(values: npt.NDArray[Any], low: float, high: float) -> Bytes:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("the image has values that are NaN or infinite")
    if low < -_SLACK or high > 255 + _SLACK or 1 + _SLACK < high < 2:
        raise ImageError(f"the image's values {low:g}..{high:g} are neither 0..1 nor 0..255")
    scale = 255 if high <= 1 + _SLACK else 1
    scaled = values.astype(np.float32) * np.float32(scale)
    levels: Bytes = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return levels
