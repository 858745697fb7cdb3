"""`open_image`: sources, limits, frames, orientation; and `image_hash`."""

from __future__ import annotations

import base64
import struct
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from vip_llava.errors import ImageError
from vip_llava.images import image_hash, open_image
from vip_llava.regions import Box, draw

Encode = Callable[..., bytes]


def far(one: Image.Image, other: Image.Image) -> int:
    difference = np.asarray(one).astype(int) - np.asarray(other)
    return int(np.abs(difference).max())


def test_every_format_opens_by_content(
    files: dict[str, bytes], photo: Image.Image, tmp_path: Path
) -> None:
    for name, data in files.items():
        misnamed = tmp_path / f"{name}.exe"
        misnamed.write_bytes(data)
        image = open_image(misnamed)
        assert (image.mode, image.size, image.info) == ("RGB", photo.size, {}), name
        assert image.tobytes() == open_image(str(misnamed)).tobytes()
        assert image.tobytes() == open_image(data).tobytes()


def test_all_sources_give_the_same_image(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo, "PNG")
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    sources: list[Any] = [
        data,
        bytearray(data),
        memoryview(data),
        photo,
        np.asarray(photo),
        address,
    ]
    assert {image_hash(open_image(source)) for source in sources} == {image_hash(photo)}


def test_the_given_image_is_not_altered(photo: Image.Image) -> None:
    for mode in ("RGB", "RGBA", "L", "P"):
        given = photo.convert(mode)
        given.info["comment"] = "mine"
        before = image_hash(given)
        opened = open_image(given)
        opened.paste((0, 0, 0), (0, 0, *opened.size))
        assert image_hash(given) == before
        assert given.info["comment"] == "mine"


@pytest.mark.parametrize("source", [None, 7, ["a.png"], object()])
def test_other_sources_are_refused(source: Any) -> None:
    with pytest.raises(ImageError, match="an image can't be a"):
        open_image(source)


def test_messages_name_the_limit(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo, "PNG")
    for source in (data, photo, np.asarray(photo)):
        with pytest.raises(ImageError, match=r"48 x 32 = 1,536 pixels.*max_pixels"):
            open_image(source, max_pixels=1535)
        assert open_image(source, max_pixels=1536).size == (48, 32)
    with pytest.raises(ImageError, match="max_bytes"):
        open_image(data, max_bytes=len(data) - 1)


def _bomb_headers(png_chunk: Callable[[bytes, bytes], bytes]) -> dict[str, bytes]:
    """Files of a few bytes that claim 60,000 x 60,000 pixels (WebP: 16,384 x 16,384)."""
    wide, tall = 60_000, 60_000
    frame = struct.pack(">BHHB", 8, tall, wide, 3) + bytes([1, 17, 0, 2, 17, 1, 3, 17, 1])
    ifd = [(256, 4, 1, wide), (257, 4, 1, tall), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags = b"".join(struct.pack("<HHII", *entry) for entry in ifd)
    screen = struct.pack("<HHBBB", wide, tall, 0x80, 0, 0) + bytes(6)
    return {
        "PNG": b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", wide, tall, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", bytes(10))
        + png_chunk(b"IEND", b""),
        "JPEG": b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xda\0\x02",
        "WEBP": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,
        "BMP": b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, wide, tall, 1, 24, 0) + bytes(20),
        "GIF": b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, wide, tall, 0) + b"\x02\0;",
        "TIFF": b"II*\0" + struct.pack("<IH", 8, len(ifd)) + tags + bytes(4),
    }


def test_bombs_are_refused_on_their_header(
    png_chunk: Callable[[bytes, bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    for name, data in _bomb_headers(png_chunk).items():
        started = time.perf_counter()
        with pytest.raises(ImageError, match="pixels"):
            open_image(data)
        assert time.perf_counter() - started < 1, name


def test_the_message_for_a_header_that_pillow_refuses_has_our_limit(
    png_chunk: Callable[[bytes, bytes], bytes],
) -> None:
    with pytest.raises(ImageError, match=r"says 3,600,000,000; the limit is 64,000,000"):
        open_image(_bomb_headers(png_chunk)["PNG"], max_pixels=64_000_000)


def test_a_real_bomb_is_refused_quickly(encode: Encode) -> None:
    data = encode(Image.new("1", (12_000, 12_000)), "PNG")
    assert len(data) < 60_000
    with pytest.raises(ImageError, match="144,000,000 pixels"):
        open_image(data)


def test_a_higher_limit_raises_no_warning_of_pillow(
    encode: Encode, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    data = encode(photo, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_image(data).size == photo.size  # Pillow would warn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageError, match="too many pixels"):
        open_image(data)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_thin_images(size: tuple[int, int], encode: Encode) -> None:
    assert open_image(encode(Image.new("RGB", size), "PNG")).size == size


def test_a_side_has_a_limit_too() -> None:
    with pytest.raises(ImageError, match="65,535"):
        open_image(np.zeros((1, 65_536), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused_and_one_is_not(
    kind: str, photo: Image.Image, encode: Encode
) -> None:
    other = photo.transpose(Image.Transpose.ROTATE_180)
    data = encode(photo, kind, save_all=True, append_images=[other])
    with pytest.raises(ImageError, match=r"animated|several frames"):
        open_image(data)
    assert open_image(encode(photo, kind, save_all=True)).size == photo.size


def test_a_frame_of_an_animation_can_be_given(
    photo: Image.Image, encode: Encode, tmp_path: Path
) -> None:
    path = tmp_path / "two.gif"
    other = photo.transpose(Image.Transpose.ROTATE_180)
    path.write_bytes(encode(photo, "GIF", save_all=True, append_images=[other]))
    with Image.open(path) as animation:
        animation.seek(1)
        with pytest.raises(ImageError, match=r"image\.copy"):
            open_image(animation)
        assert open_image(animation.copy()).size == photo.size


def test_the_photo_of_an_mpo_is_its_first_image(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo, "MPO", save_all=True, append_images=[photo.resize((8, 8))])
    assert far(open_image(data), photo) < 40
    assert open_image(data).size == photo.size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(
    kind: str, orientation: int, photo: Image.Image, encode: Encode, tmp_path: Path
) -> None:
    # How the pixels of an upright photo are stored for each value of the EXIF tag.
    stored = {
        1: photo,
        2: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: photo.transpose(Image.Transpose.ROTATE_180),
        4: photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: photo.transpose(Image.Transpose.TRANSPOSE),
        6: photo.transpose(Image.Transpose.ROTATE_90),
        7: photo.transpose(Image.Transpose.TRANSVERSE),
        8: photo.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind != "TIFF" else {}
    path = tmp_path / "turned"
    path.write_bytes(encode(stored, kind, exif=exif, **options))
    assert open_image(path).size == photo.size
    assert far(open_image(path), photo) < 40
    with Image.open(path) as image:
        assert open_image(image).tobytes() == open_image(path).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_region_refers_to_the_upright_image(orientation: int, encode: Encode) -> None:
    """For every orientation, the coordinates of a box refer to the upright image."""
    stored = Image.new("RGB", (48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = open_image(encode(stored, "PNG", exif=exif))
    assert photo.size == ((32, 48) if orientation >= 5 else (48, 32))
    drawn = np.asarray(draw(photo, [Box(3, 5, 20, 28, width=1)]))
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (3, 5, 20, 28)


def test_an_image_that_cannot_be_loaded_is_an_image_error(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(files["jpeg"][:-20])
    with Image.open(path) as image, pytest.raises(ImageError, match="truncated"):
        open_image(image)
    closed = Image.open(path)
    closed.close()
    with pytest.raises(ImageError):
        open_image(closed)


def test_postscript_is_not_run_through_pillow(tmp_path: Path) -> None:
    path = tmp_path / "a.eps"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ImageError, match="PostScript"):
        open_image(path)
    with Image.open(path) as image, pytest.raises(ImageError, match="external program"):
        open_image(image)


@pytest.mark.parametrize(
    "name",
    ["jpeg", "progressive", "png", "rgba", "webp", "lossless", "bmp", "gif", "tiff", "lzw"],
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused(name: str, share: float, files: dict[str, bytes]) -> None:
    data = files[name]
    with pytest.raises(ImageError):
        open_image(data[: int(len(data) * share)])


def test_truncation_is_refused_whatever_the_settings_of_pillow(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="truncated"):
        open_image(files["jpeg"][:-20])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_threads_restore_the_warning_filters(files: dict[str, bytes]) -> None:
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for data in list(files.values()) * 5:
                open_image(data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(warnings.filters) == before


def test_different_images_have_different_hashes() -> None:
    row = Image.frombytes("L", (6, 1), bytes(6))
    assert image_hash(row) != image_hash(Image.frombytes("L", (1, 6), bytes(6)))
    assert image_hash(row) != image_hash(Image.frombytes("RGB", (2, 1), bytes(6)))
    assert image_hash(row) == image_hash(row.copy())
    one, other = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    one.putpalette([0, 0, 0])
    other.putpalette([255, 0, 0])
    assert image_hash(one) != image_hash(other)
