"""The one safe way from whatever a person hands over to an RGB image.

`open_image` decides by content what a file is, refuses what is too large before anything is
decoded, turns the image as its EXIF says and flattens transparency on white. The package knows
files and Pillow. It never touches the network, draws nothing and knows nothing of models.
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

# 64 megapixels hold the full resolution of nearly every phone and take 256 MB once decoded.
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 1024 * 1024


def open_image(
    source: str | Path | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.generic],
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Image.Image:
    """Open an image safely; the result is always RGB, loaded, turned upright and independent.

    Args:
        source: a path; the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file with one image; a
            `data:` address; a Pillow image (it is not altered); or a numpy array of shape [H, W],
            [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) holding bytes, booleans, 16-bit values,
            or floats of 0..1 or 0..255. Web addresses are not fetched.
        max_pixels: largest width x height, checked on the header before decoding.
        max_bytes: largest file.

    Raises:
        ImageError: the source can't be read, is no such image, is too large, damaged or animated.
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

    The size is part of it: a 2 x 3 and a 3 x 2 image of the same bytes differ.
    """
    digest = hashlib.sha256(f"{image.mode}:{image.width}x{image.height}:".encode())
    if image.mode in ("P", "PA"):
        digest.update(bytes(image.getpalette("RGBA") or ()))
    digest.update(image.tobytes())
    return digest.hexdigest()
