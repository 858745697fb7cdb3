"""Read the bytes of an image from a path, bytes or a `data:` URL, within a byte limit.

The module does not know image formats and opens no connection: it refuses web addresses.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat
import urllib.parse
from pathlib import Path

from vip_llava.errors import ImageError

__all__ = ["read_source"]

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_DATA = re.compile(r"\s*data:", re.IGNORECASE)
_WHITE = re.compile(r"\s+")
_LONGEST_DATA_HEAD = 1000


def read_source(source: object, max_bytes: int) -> bytes:
    """The bytes of `source`, a path, bytes or a `data:` URL.

    Raises:
        ImageError: an unsupported type, unreadable, empty, or larger than `max_bytes`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        _check_length(memoryview(source).nbytes, max_bytes)
        data = bytes(source)
    elif isinstance(source, str) and _DATA.match(source):
        data = _from_data_url(source, max_bytes)
    elif isinstance(source, str | Path):
        data = _from_path(source, max_bytes)
    else:
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        raise ImageError(
            f"an image can't be a {kind}; pass a path, the bytes of an image file, a data: URL, a "
            "Pillow image or a numpy array"
        )
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    return data


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise ImageError(
            f"the image has {length:,} bytes; at most {max_bytes:,} are read (max_bytes)"
        )


def _from_path(source: str | Path, max_bytes: int) -> bytes:
    found = _SCHEME.match(source) if isinstance(source, str) else None
    if found:
        scheme = found[1].lower()
        # The message omits the address, which may hold a password or a token.
        advice = (
            "pass the path without the scheme"
            if scheme == "file"
            else "download the image first and pass its path or its bytes"
        )
        raise ImageError(f"images are not fetched from {scheme}: addresses; {advice}")
    path = Path(source)
    try:
        status = path.stat()
        # A pipe or a device could deliver endless data, or block forever.
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{str(path)!r} is {kind}; pass the path of an image file")
        _check_length(status.st_size, max_bytes)
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ImageError(f"the image file {_short(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"the image file {_short(path)!r} can't be read: {reason}") from None
    _check_length(len(data), max_bytes)
    return data


def _short(path: Path) -> str:
    """A path for a message, shortened in case it is an image pasted as text."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:120]}... ({len(text):,} characters)"


def _from_data_url(url: str, max_bytes: int) -> bytes:
    """The payload of a `data:` URL. The media type is ignored.

    Tolerates white space, both base64 alphabets, percent escapes, and missing or surplus padding.
    """
    head, comma, payload = url.partition(",")
    if not comma or len(head) > _LONGEST_DATA_HEAD:
        raise ImageError("the data: URL has no comma after its head (data:image/png;base64,...)")
    if not head.lower().rstrip().endswith(";base64"):
        # At most three characters encode one byte.
        _check_length(len(payload) // 3, max_bytes)
        data = urllib.parse.unquote_to_bytes(payload)
        _check_length(len(data), max_bytes)
        return data
    if "%" in payload:
        payload = urllib.parse.unquote(payload)
    text = _WHITE.sub("", payload).rstrip("=").replace("-", "+").replace("_", "/")
    _check_length(len(text) * 3 // 4, max_bytes)
    if len(text) % 4 == 1:
        raise ImageError(
            f"the base64 of the data: URL is truncated ({len(text):,} characters can't be decoded)"
        )
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the data: URL holds characters that are not base64") from None
