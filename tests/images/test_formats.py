"""Checks of a file's bytes before Pillow reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from vip_llava.errors import ImageError
from vip_llava.images import open_image
from vip_llava.images.formats import canvas_size, check_scan_count, essential_png, sniff

Encode = Callable[..., bytes]
Chunk = Callable[[bytes, bytes], bytes]


def test_formats_are_known_by_content(files: dict[str, bytes]) -> None:
    found = {name: sniff(data) for name, data in files.items()}
    assert found["jpeg"] == found["progressive"] == found["cmyk"] == "JPEG"
    assert found["png"] == found["palette"] == "PNG"
    assert found["webp"] == found["lossless"] == "WEBP"
    assert (found["bmp"], found["gif"], found["tiff"]) == ("BMP", "GIF", "TIFF")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\x00\x00\x00\x1cftypavif", "AVIF"),
        (b"\x00\x00\x00\x1cftypheic", "HEIC"),
        (b"\x00\x00\x00\x1cftypisom", "video"),
        (b'<?xml version="1.0"?><svg>', "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"P6 4 4 255\n", "50 36 20"),
        (b"x", "unknown"),
    ],
)
def test_other_kinds_are_named(start: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=kind) as caught:
        open_image(start + bytes(64))
    assert "JPEG, PNG, WEBP" in str(caught.value)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp"])
def test_the_first_bytes_decide_the_format_of_a_polyglot(
    name: str, files: dict[str, bytes]
) -> None:
    tail = b"%PDF-1.7 %!PS-Adobe PK\x03\x04<script>alert(1)</script>" + bytes(100)
    wanted = open_image(files[name]).tobytes()
    assert open_image(files[name] + tail).tobytes() == wanted
    with pytest.raises(ImageError):
        open_image(tail + files[name])


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_canvas_is_read_from_the_header(lossless: bool, mode: str, encode: Encode) -> None:
    image = Image.new(mode, (301, 77), (10, 20, 30, 40)[: len(mode)])
    assert canvas_size(encode(image, "WEBP", lossless=lossless), "WEBP") == (301, 77)
    with_text = encode(image, "WEBP", lossless=lossless, xmp=b"<x/>")
    assert canvas_size(with_text, "WEBP") == (301, 77)


def test_huge_and_broken_metadata_is_harmless(
    photo: Image.Image, encode: Encode, png_chunk: Chunk
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "A" * 20_000_000, zip=True)  # more than Pillow would unpack
    data = encode(photo, "PNG", pnginfo=text)
    assert open_image(data).tobytes() == photo.tobytes()
    clean = encode(photo, "PNG")
    for chunk in (
        png_chunk(b"iCCP", b"bad\0\0not zlib"),
        png_chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        png_chunk(b"eXIf", b"")[:-1] + b"?",
        png_chunk(b"zTXt", b"no terminator"),
    ):
        assert open_image(clean[:33] + chunk + clean[33:]).tobytes() == photo.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colour_profiles_good_and_bad_are_ignored(
    kind: str, photo: Image.Image, encode: Encode
) -> None:
    good = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wanted = open_image(encode(photo, kind)).tobytes()
    for profile in (good, b"garbage", bytes(300_000)):
        assert open_image(encode(photo, kind, icc_profile=profile)).tobytes() == wanted


def test_damaged_exif_is_harmless(photo: Image.Image, encode: Encode) -> None:
    wanted = open_image(encode(photo, "JPEG")).tobytes()
    looping = (
        b"Exif\0\0MM\0*\0\0\0\x08" + b"\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x08" + b"\0\0\0\x08"
    )
    for exif in (b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", looping):
        assert open_image(encode(photo, "JPEG", exif=exif)).tobytes() == wanted


def test_a_malformed_multi_image_header_is_ignored(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo, "JPEG")
    for payload in (b"MPF\0", b"MPF\0II*\0\x08\0\0\0\x05\0", b"MPF\0MM\0*\0\0\0\x08\xff\xff"):
        segment = b"\xff\xe2" + struct.pack(">H", len(payload) + 2) + payload
        assert open_image(data[:2] + segment + data[2:]).tobytes() == open_image(data).tobytes()


def test_png_keeps_the_chunks_that_determine_the_pixels(files: dict[str, bytes]) -> None:
    data = files["palette"]
    assert essential_png(data) == data
    with pytest.raises(ImageError, match="IEND"):
        essential_png(data[:-12])
    spoiled = bytearray(data)
    spoiled[data.index(b"IDAT") + 6] ^= 1
    with pytest.raises(ImageError, match="checksum of its IDAT"):
        essential_png(bytes(spoiled))


def _scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_too_many_scans_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(ImageError, match="100 scans"):
        open_image(_scans(files["progressive"], 150))


def test_scans_are_counted_in_the_image_alone(files: dict[str, bytes]) -> None:
    data = files["jpeg"]
    check_scan_count(data + b"\xff\xda" * 500)  # behind its end
    comment = b"\xff\xfe" + struct.pack(">H", 1002) + b"\xff\xda" * 500
    check_scan_count(data[:2] + comment + data[2:])
    assert open_image(data[:2] + comment + data[2:]).tobytes() == open_image(data).tobytes()


@pytest.mark.parametrize("side", [256, 60_000])
def test_a_tiff_with_a_huge_tile_is_refused(side: int) -> None:
    entries = [(256, 16), (257, 16), (258, 8), (259, 5), (262, 1), (277, 1)]
    entries += [(322, side), (323, side), (324, 8), (325, 64)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(200)
    with pytest.raises(ImageError, match="pixels" if side > 256 else "damaged"):
        open_image(data)


@pytest.mark.parametrize("codec", ["packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_codecs_for_photos(codec: str, photo: Image.Image, encode: Encode) -> None:
    assert open_image(encode(photo, "TIFF", compression=codec)).size == photo.size


@pytest.mark.parametrize("codec", ["group4", "lzma"])
def test_other_tiff_codecs_are_refused(codec: str, encode: Encode) -> None:
    with pytest.raises(ImageError, match=codec):
        open_image(encode(Image.new("1", (8, 8)), "TIFF", compression=codec))
