"""Detect the format of an image file by content, and check its header before Pillow reads it.

Formats outside `FORMATS` are refused, by name if they are known. The checks read a few bytes of the
header and decode nothing.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Literal, TypeAlias

from vip_llava.errors import ImageError

__all__ = ["FORMATS", "Format", "canvas_size", "check_scan_count", "essential_png", "sniff"]

Format: TypeAlias = Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

_STARTS: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_REFUSED_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"%PDF", "a PDF file"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x01\x00", "an icon file"),
    (b"8BPS", "a Photoshop file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"II+\x00", "a BigTIFF file"),
    (b"MM\x00+", "a BigTIFF file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x93NUMPY", "a numpy file (load it and give the array)"),
    (b"\x1f\x8b", "a gzip archive"),
)
_FTYP_BRANDS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"mif1": "a HEIC or AVIF image",
}
_TEXTS = ((b"<svg", "an SVG drawing"), (b"<html", "a web page"), (b"<!doctype", "a web page"))

# A photo has about ten scans. Each costs a pass over the whole image for a few bytes.
_MAX_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
# The chunks that determine the pixels and the orientation; the others are metadata.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}


def sniff(data: bytes) -> Format:
    """The format of an image file, from its first bytes.

    Raises:
        ImageError: not one of `FORMATS`; the message names the detected format.
    """
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ImageError(
        f"the file is {_guess(data)}, not a supported image; supported formats: "
        f"{', '.join(FORMATS)}"
    )


def _guess(data: bytes) -> str:
    for start, name in _REFUSED_STARTS:
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        return _FTYP_BRANDS.get(data[8:12], "a video")
    beginning = data[:512].lower()
    for text, name in _TEXTS:
        if text in beginning:
            return name
    return f"of an unknown format (its first bytes are {data[:8].hex(' ')})"


def canvas_size(data: bytes, name: Format) -> tuple[int, int] | None:
    """Width and height in the header of a WebP or GIF, for which Pillow allocates on opening."""
    if name == "GIF" and len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        return width, height
    if name != "WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def essential_png(data: bytes) -> bytes:
    """The same PNG with only the chunks that determine its pixels and orientation.

    Raises:
        ImageError: truncated, damaged, or animated (APNG).
    """
    kept = [data[:8]]
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        kind = data[position + 4 : position + 8]
        if end > len(data):
            break
        if kind == b"acTL" and int.from_bytes(data[position + 8 : position + 12], "big") > 1:
            raise ImageError("the PNG file is animated (APNG); pass one of its frames as an image")
        if kind in _PNG_CHUNKS and _chunk_is_whole(data, position, end):
            kept.append(data[position:end])
        if kind == b"IEND":
            return b"".join(kept)
        position = end
    raise ImageError("the PNG file is truncated: it ends before its IEND chunk")


def _chunk_is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether a chunk's checksum is right. A damaged EXIF chunk is dropped, others raise."""
    if zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
        return True
    kind = data[start + 4 : start + 8]
    if kind == b"eXIf":
        return False
    raise ImageError(f"the PNG file is damaged: the checksum of its {kind.decode()} chunk is wrong")


def check_scan_count(data: bytes) -> None:
    """Raise ImageError for a JPEG with more than 100 scans, which could take minutes to decode."""
    # This upper bound is exact except for thumbnails and appended data.
    if data.count(b"\xff\xda") <= _MAX_SCANS:
        return
    scans = 0
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        marker = found[1][0]
        position = found.end()
        if marker == 0xD9:
            return
        if marker == 0x01 or marker == 0xD8:
            continue
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise ImageError(f"the JPEG file has more than {_MAX_SCANS} scans; save it again")
        position += int.from_bytes(data[position : position + 2], "big")
