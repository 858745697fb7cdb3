"""Decoding with Pillow, fenced: limits first, one format at a time, one kind of error out.

Knows nothing of paths and addresses (`sources`) nor of colours (`colors`).
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
from vip_llava.images.formats import canvas_size, essential_png, refuse_scan_flood, sniff

__all__ = ["MAX_SIDE", "check_size", "decode", "image_to_rgb"]

# No side can be longer in a JPEG; longer ones exist only to make padding to a square explode.
MAX_SIDE = 65_535

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# Every codec more is another library that meets hostile bytes.
_TIFF_CODECS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg")
_RUN_PROGRAMS = {"EPS", "WMF"}


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse an image without pixels or with too many.

    Raises:
        ImageError: with the size and the limit.
    """
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
    """The RGB image in the bytes of a file.

    Raises:
        ImageError: unknown format, too large, damaged, truncated, or more than one frame.
    """
    name = sniff(data)
    if early := canvas_size(data, name):
        check_size(early, max_pixels)
    if name == "PNG":
        data = essential_png(data)
    elif name == "JPEG":
        refuse_scan_flood(data)
    with _fence(f"the {name} file", max_pixels), Image.open(BytesIO(data), formats=[name]) as image:
        check_size(image.size, max_pixels)
        _refuse_frames(image, f"the {name} file")
        _check_tiff(image, max_pixels)
        image.load()
        return to_rgb(_upright(image), from_file=True)


def image_to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """A new RGB image from a Pillow image, which stays as it is.

    Raises:
        ImageError: too large, damaged, animated, or lazily opened from PostScript.
    """
    check_size(image.size, max_pixels)
    from_file = isinstance(image, ImageFile.ImageFile)
    if from_file and image.format in _RUN_PROGRAMS:
        raise ImageError(
            f"an image opened from {image.format} is not taken: to decode it, Pillow runs another "
            "program; convert it to PNG first"
        )
    with _fence("the given image", max_pixels):
        _refuse_frames(image, "the given image")
        image.load()
        return to_rgb(_upright(image), from_file=from_file)


def _refuse_frames(image: Image.Image, what: str) -> None:
    # The further images of an MPO are previews, depth or gain maps of the first, which is the photo.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(
            f"{what} has more than one frame or page; give one as an image (image.copy())"
        )


def _check_tiff(image: Image.Image, max_pixels: int) -> None:
    """Refuse a TIFF whose codec is none for photos, or whose tiles, allocated whole, are too large."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    codec = image.info.get("compression")
    if codec not in _TIFF_CODECS:
        raise ImageError(
            f"the TIFF file is compressed with {codec!r}; those read here are {', '.join(_TIFF_CODECS)}"
        )
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:
        check_size((int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])), max_pixels)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; unreadable EXIF says nothing. `image` is not changed."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata raises whatever its parser stumbles on
        turn = None
    return image if turn is None else image.transpose(turn)


_lock = threading.Lock()
_inside = 0
_outer: tuple[warnings.catch_warnings[None], bool] | None = None


@contextmanager
def _fence(what: str, max_pixels: int) -> Iterator[None]:
    """Around Pillow: no warning leaks, truncation is an error, and every failure is a ImageError."""
    _enter()
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        # Pillow's own limit stands before ours where a header claims very much, or ours was raised.
        claimed = re.search(r"\d+", str(error))
        count = f"{int(claimed[0]):,}" if claimed else "far more"
        least = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(
            f"{what} has too many pixels: it claims {count}; at most {least:,} are opened"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{what} can't be decoded, its header is damaged or truncated") from error
    except Exception as error:  # on damaged input, decoders raise nearly every kind there is
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{what} can't be decoded, it is damaged or truncated: {reason}"
        ) from error
    finally:
        _leave()


def _enter() -> None:
    """Silence Pillow and make it strict while any thread is inside.

    Both settings belong to the whole process, so the first thread in sets them and the last one
    out restores them; threads that set them one by one would restore each other's.
    """
    global _inside, _outer
    with _lock:
        _inside += 1
        if _inside == 1:
            quiet = warnings.catch_warnings()
            quiet.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _outer = quiet, ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def _leave() -> None:
    global _inside, _outer
    with _lock:
        _inside -= 1
        if _inside == 0 and _outer is not None:
            quiet, ImageFile.LOAD_TRUNCATED_IMAGES = _outer
            quiet.__exit__(None, None, None)
            _outer = None
