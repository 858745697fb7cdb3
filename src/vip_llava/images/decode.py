"""Decode images with Pillow: limits first, one format at a time, every failure an ImageError.

The module does not know paths and URLs (`sources`) or pixel modes (`color_modes`).
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from vip_llava.errors import ImageError
from vip_llava.images.color_modes import to_rgb
from vip_llava.images.formats import canvas_size, check_scan_count, essential_png, sniff

__all__ = ["MAX_SIDE", "check_size", "decode", "image_to_rgb"]

# The longest side of a JPEG. A longer side would make padding to a square explode.
MAX_SIDE = 65_535

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# Each further codec would expose another library to hostile bytes.
_TIFF_CODECS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg")
_EXTERNAL_DECODERS = {"EPS", "WMF"}


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise ImageError for an image without pixels or with too many."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width} x {height})")
    if max(size) > MAX_SIDE:
        raise ImageError(f"the image is {width} x {height}; no side may exceed {MAX_SIDE:,} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} = {width * height:,} pixels; at most {max_pixels:,} "
            "are opened (max_pixels)"
        )


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode the bytes of an image file to RGB.

    Raises:
        ImageError: unknown format, too large, damaged, truncated, or more than one frame.
    """
    name = sniff(data)
    if early := canvas_size(data, name):
        check_size(early, max_pixels)
    if name == "PNG":
        data = essential_png(data)
    elif name == "JPEG":
        check_scan_count(data)
    with (
        _guarded(f"the {name} file", max_pixels),
        Image.open(BytesIO(data), formats=[name]) as image,
    ):
        check_size(image.size, max_pixels)
        _refuse_frames(image, f"the {name} file")
        _check_tiff(image, max_pixels)
        image.load()
        return to_rgb(_upright(image), from_file=True)


def image_to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """A new RGB image from a Pillow image, which is not modified.

    Raises:
        ImageError: too large, damaged, animated, or lazily opened from PostScript.
    """
    check_size(image.size, max_pixels)
    from_file = isinstance(image, ImageFile.ImageFile)
    if from_file and image.format in _EXTERNAL_DECODERS:
        raise ImageError(
            f"images opened from {image.format} are not supported, because Pillow runs an external "
            "program to decode them; convert it to PNG first"
        )
    with _guarded("the given image", max_pixels):
        _refuse_frames(image, "the given image")
        image.load()
        return to_rgb(_upright(image), from_file=from_file)


def _refuse_frames(image: Image.Image, what: str) -> None:
    # The first image of an MPO is the photo; the others are previews, depth or gain maps.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(
            f"{what} has several frames or pages; pass one of them as an image (image.copy())"
        )


def _check_tiff(image: Image.Image, max_pixels: int) -> None:
    """Raise for a TIFF with a codec that photos don't use, or with too large tiles."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    codec = image.info.get("compression")
    if codec not in _TIFF_CODECS:
        raise ImageError(
            f"the TIFF compression {codec!r} is not supported; supported: {', '.join(_TIFF_CODECS)}"
        )
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:
        check_size((int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])), max_pixels)


def _upright(image: Image.Image) -> Image.Image:
    """The image in its EXIF orientation. Unreadable EXIF data is ignored."""
    try:
        transpose = _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # parsers of damaged metadata raise any type
        transpose = None
    return image if transpose is None else image.transpose(transpose)


_lock = threading.Lock()
_active = 0
_saved: tuple[warnings.catch_warnings[None], bool] | None = None


@contextmanager
def _guarded(what: str, max_pixels: int) -> Iterator[None]:
    """Run Pillow code: no warnings, truncation is an error, and every failure is an ImageError."""
    _enter()
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        # Pillow's own limit applies first if it is lower than `max_pixels`.
        claimed = re.search(r"\d+", str(error))
        count = f"{int(claimed[0]):,}" if claimed else "far more"
        least = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(
            f"{what} has too many pixels: its header says {count}; the limit is {least:,}"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{what} can't be decoded: its header is damaged or truncated") from error
    except Exception as error:  # decoders raise almost any type on damaged input
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{what} can't be decoded: it is damaged or truncated ({reason})"
        ) from error
    finally:
        _leave()


def _enter() -> None:
    """Silence Pillow's warnings and make truncation an error while any thread decodes.

    Both settings are global to the process, so the first thread to enter sets them and the last one
    to leave restores them.
    """
    global _active, _saved
    with _lock:
        _active += 1
        if _active == 1:
            quiet = warnings.catch_warnings()
            quiet.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _saved = quiet, ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def _leave() -> None:
    global _active, _saved
    with _lock:
        _active -= 1
        if _active == 0 and _saved is not None:
            quiet, ImageFile.LOAD_TRUNCATED_IMAGES = _saved
            quiet.__exit__(None, None, None)
            _saved = None
