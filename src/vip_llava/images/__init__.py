"""Safe decoding of images to RGB.

`open_image` detects the format by content, checks limits before decoding, applies the EXIF
orientation and flattens transparency on white. The package does not use the network and does not know
regions or models.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vip_llava.images.color_modes import array_to_rgb
from vip_llava.images.decode import check_size, decode, image_to_rgb
from vip_llava.images.formats import FORMATS
from vip_llava.images.sources import read_source

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "image_hash", "open_image"]

# 64 megapixels are the full resolution of nearly every phone and take 256 MB once decoded.
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 1024 * 1024


def open_image(
    source: str | Path | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.generic],
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Image.Image:
    """Open an image safely. The result is RGB, loaded, upright and independent of the source.

    Args:
        source: a path; the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file with one image; a
            `data:` URL; a Pillow image (not modified); or a numpy array of shape [H, W], [H, W, 1],
            [H, W, 3] (RGB) or [H, W, 4] (RGBA) with bytes, booleans, 16-bit values, or floats in
            0..1 or 0..255. Web addresses are not fetched.
        max_pixels: maximum of width x height, checked on the header before decoding.
        max_bytes: maximum size of a file.

    Raises:
        ImageError: the source is unreadable, not a supported image, too large, damaged or animated.
    """
    if isinstance(source, Image.Image):
        return image_to_rgb(source, max_pixels)
    if isinstance(source, np.ndarray):
        if source.ndim >= 2:
            check_size((source.shape[1], source.shape[0]), max_pixels)
        return array_to_rgb(source)
    return decode(read_source(source, max_bytes), max_pixels)


def image_hash(image: Image.Image) -> str:
    """SHA-256 (hex) of an image's mode, size, palette and pixels.

    The size is included, so that a 2 x 3 and a 3 x 2 image of the same bytes differ.
    """
    digest = hashlib.sha256(f"{image.mode}:{image.width}x{image.height}:".encode())
    if image.mode in ("P", "PA"):
        digest.update(bytes(image.getpalette("RGBA") or ()))
    digest.update(image.tobytes())
    return digest.hexdigest()
