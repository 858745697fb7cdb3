"""Conversion of every mode and array to RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from vip_llava.errors import ImageError
from vip_llava.images import open_image

Encode = Callable[..., bytes]
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def grey(levels: Any) -> bytes:
    return Image.fromarray(np.asarray(levels, dtype=np.uint8)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    "mode", ["L", "LA", "PA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"]
)
def test_every_mode_keeps_a_grey_ramp(mode: str) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    opened = open_image(image)
    assert opened.mode == "RGB"
    assert opened.tobytes() == grey(RAMP)


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "LAB"])
def test_other_colour_spaces(mode: str, photo: Image.Image) -> None:
    image = photo.convert("L").convert("RGB").convert(mode)
    difference = (
        np.asarray(open_image(image)).astype(int) - np.asarray(photo.convert("L"))[..., None]
    )
    assert np.abs(difference).max() <= 3


def test_black_and_white() -> None:
    image = Image.fromarray(RAMP > 127)
    assert image.mode == "1"
    assert open_image(image).tobytes() == grey((RAMP > 127) * 255)


def test_transparency_is_flattened_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)])
    pixels = np.asarray(open_image(image))[0]
    assert pixels[:2].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert np.abs(pixels[2].astype(int) - [227, 127, 127]).max() <= 1
    for mode in ("RGBa", "PA"):
        clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0)).convert(mode)
        assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    clear = Image.new("LA", (2, 2), (9, 0)).convert("La")
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00", b"\xff\x00\xff"])
def test_palette_transparency(transparency: int | bytes, encode: Encode) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(open_image(encode(image, "PNG", transparency=transparency)))
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_a_transparent_colour_key(encode: Encode) -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    pixels = np.asarray(open_image(encode(image, "PNG", transparency=(4, 5, 6))))
    assert pixels[0].tolist() == [[1, 2, 3], [255, 255, 255]]
    deep = Image.fromarray(np.array([[0, 65535, 300]], dtype=np.uint16))
    deep.info["transparency"] = 300
    assert np.asarray(open_image(deep))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str, encode: Encode) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(values), kind)
    assert np.asarray(open_image(data))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]
    # A dark file stays dark: its type says that 65535 is white.
    dark = encode(Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)), kind)
    assert open_image(dark).getpixel((0, 0)) == (1, 1, 1)


def test_float_and_integer_tiff(encode: Encode) -> None:
    for values in (RAMP.astype(np.float32), RAMP.astype(np.int32)):
        assert open_image(encode(Image.fromarray(values), "TIFF")).tobytes() == grey(RAMP)


@pytest.mark.parametrize(
    "array",
    [
        RAMP,
        RAMP[..., None],
        np.repeat(RAMP[..., None], 3, axis=2),
        np.dstack([RAMP, RAMP, RAMP, np.full_like(RAMP, 255)]),
        RAMP.astype(np.int64),
        RAMP.astype(np.uint16) * 257,
        RAMP.astype(np.int32) * 257,
        RAMP / 255,
        (RAMP / 255).astype(np.float16),
        (RAMP / 255).astype(np.float32) * np.float32(1.0005),
        RAMP.astype(np.float32),
        np.asfortranarray(RAMP),
        np.flip(RAMP)[::-1, ::-1],
        RAMP.astype(">u2") * 257,
    ],
)
def test_arrays_of_the_same_grey_ramp(array: np.ndarray[Any, Any]) -> None:
    levels = np.asarray(open_image(array)).astype(int)
    assert levels.shape == (16, 16, 3)
    assert np.abs(levels - RAMP[..., None]).max() <= (1 if array.dtype.kind == "f" else 0)


def test_boolean_arrays_and_alpha() -> None:
    assert open_image(RAMP > 127).tobytes() == grey((RAMP > 127) * 255)
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    assert open_image(clear).getpixel((1, 1)) == (255, 255, 255)


def test_the_given_array_is_not_altered() -> None:
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    open_image(array).paste((255, 255, 255), (0, 0, 4, 4))
    assert not array.any()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(5, np.uint8), r"\[5\]"),
        (np.zeros((2, 3, 5), np.uint8), r"\[2, 3, 5\]"),
        (np.zeros((3, 20, 30), np.uint8), "transpose"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"\[1, 2, 2, 3\]"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 0, 3), np.float32), "no pixels"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.array([["a", "b"]]), "type"),
        (np.array([[None]]), "object"),
        (np.array([[-1, 3]]), "-1"),
        (np.array([[0, 70000]]), "70000"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "infinite"),
        (np.array([[0.0, 1.5]]), "1.5"),
        (np.array([[-0.5, 1.0]]), "-0.5"),
        (np.array([[0.0, 300.0]]), "300"),
    ],
)
def test_arrays_of_an_invalid_shape_or_dtype(array: np.ndarray[Any, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_image(array)


@given(
    st_numpy.arrays(
        dtype=st.one_of(
            st_numpy.integer_dtypes(), st_numpy.floating_dtypes(), st.just(np.dtype(bool))
        ),
        shape=st_numpy.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_gives_an_image_or_an_image_error(array: np.ndarray[Any, Any]) -> None:
    try:
        image = open_image(array)
    except ImageError as error:
        assert str(error)
    else:
        assert image.mode == "RGB"
        assert image.size == (array.shape[1], array.shape[0])
