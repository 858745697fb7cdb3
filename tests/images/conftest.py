"""Small images and files, generated for the tests."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


@pytest.fixture(scope="session")
def encode() -> Encode:
    """`encode(image, "PNG", **options)` is the bytes of a file."""
    return _encode


@pytest.fixture(scope="session")
def png_chunk() -> Callable[[bytes, bytes], bytes]:
    return _png_chunk


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A smooth RGB image, 48 x 32, with a different colour in each corner."""
    rows, columns = np.mgrid[0:32, 0:48]
    levels = np.stack([columns * 5, rows * 7, 255 - columns * 3 - rows], axis=2)
    return Image.fromarray(levels.astype(np.uint8))


@pytest.fixture(scope="session")
def files(photo: Image.Image) -> dict[str, bytes]:
    """One valid file per format and flavour."""
    palette = photo.quantize(16)
    alpha = photo.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(photo.size))
    return {
        "jpeg": _encode(photo, "JPEG"),
        "progressive": _encode(photo, "JPEG", progressive=True),
        "cmyk": _encode(photo.convert("CMYK"), "JPEG"),
        "png": _encode(photo, "PNG"),
        "palette": _encode(palette, "PNG", transparency=3),
        "rgba": _encode(alpha, "PNG"),
        "webp": _encode(photo, "WEBP"),
        "lossless": _encode(alpha, "WEBP", lossless=True),
        "bmp": _encode(photo, "BMP"),
        "gif": _encode(palette, "GIF"),
        "tiff": _encode(photo, "TIFF"),
        "lzw": _encode(photo, "TIFF", compression="tiff_lzw"),
    }
