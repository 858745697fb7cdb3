"""Squares, coordinates and configs of the image geometries."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vip_llava.errors import CheckpointError, ImageError
from vip_llava.prompting.geometry import (
    CLIP_MEAN,
    CLIP_STD,
    ImageGeometry,
    Mode,
    aspect_mode,
    best_resolution,
)

MODES: tuple[Mode, ...] = ("pad", "crop", "resize")
CONFIG: dict[str, Any] = {
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
    "resample": 3,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "rescale_factor": 0.00392156862745098,
}

sides = st.integers(1, 3000)
sizes = st.tuples(sides, sides)
unit = st.floats(0, 1, allow_nan=False)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def plain_pad(image: Image.Image, size: int, fill: tuple[int, int, int]) -> Image.Image:
    """The slow and obvious way: the whole square canvas, then one resize."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), fill)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas.resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "size", [(1, 1), (40, 7), (7, 40), (300, 299), (91, 500), (500, 1), (1, 500), (64, 64)]
)
def test_fast_padding_equals_the_whole_canvas(size: tuple[int, int]) -> None:
    image = noise(*size)
    geometry = ImageGeometry("pad", 56)
    assert geometry.fit(image).tobytes() == plain_pad(image, 56, geometry.fill).tobytes()


def test_padding_of_a_very_tall_image_is_at_most_two_levels_off() -> None:
    image = noise(30, 40).resize((3000, 4200), Image.Resampling.BICUBIC)
    geometry = ImageGeometry("pad", 112)
    got = np.asarray(geometry.fit(image)).astype(int)
    wanted = np.asarray(plain_pad(image, 112, geometry.fill)).astype(int)
    assert np.abs(got - wanted).max() <= 2


def test_crop_of_a_very_long_image_equals_the_whole_arithmetic() -> None:
    image = noise(70, 1).resize((2100, 30))
    geometry = ImageGeometry("crop", 32)
    scaled = image.resize((32 * 70, 32), Image.Resampling.BICUBIC)
    left = (scaled.width - 32) // 2
    wanted = np.asarray(scaled.crop((left, 0, left + 32, 32))).astype(int)
    assert np.abs(np.asarray(geometry.fit(image)).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (1, 65_535), (65_535, 1)])
def test_needle_images_are_quick(mode: Mode, size: tuple[int, int]) -> None:
    started = time.perf_counter()
    pixels = ImageGeometry(mode, 336).pixels(Image.new("RGB", size, (10, 200, 30)))
    assert pixels.shape == (3, 336, 336)
    assert pixels.dtype == np.float32
    assert time.perf_counter() - started < 5


def test_padding_colour_is_the_mean_rounded_down() -> None:
    square = ImageGeometry("pad", 32).fit(Image.new("RGB", (64, 2), (255, 255, 255)))
    assert square.getpixel((0, 0)) == (122, 116, 104)
    assert square.getpixel((31, 31)) == (122, 116, 104)


def test_pixels_are_the_square_normalised() -> None:
    geometry = ImageGeometry("crop", 16)
    image = noise(16, 16)
    wanted = (np.asarray(image) / 255 - CLIP_MEAN) / CLIP_STD
    assert np.allclose(geometry.pixels(image), wanted.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_given_image_is_not_altered(mode: Mode) -> None:
    image = noise(16, 16)
    before = image.tobytes()
    square = ImageGeometry(mode, 16).fit(image)
    square.paste((0, 0, 0), (0, 0, 16, 16))
    assert image.tobytes() == before


def test_other_modes_are_refused() -> None:
    with pytest.raises(ImageError, match="open_image"):
        ImageGeometry().fit(Image.new("RGBA", (4, 4)))


@pytest.mark.parametrize(
    ("changes", "mode", "wanted"),
    [
        ({}, None, "crop"),
        ({"do_pad": True}, None, "pad"),
        ({}, "pad", "pad"),
        ({"do_pad": True}, "square", "crop"),
        ({"size": {"height": 56, "width": 56}, "do_center_crop": False}, None, "resize"),
        ({"size": 56, "crop_size": 56, "resample": "BICUBIC"}, "resize", "resize"),
    ],
)
def test_configs(changes: dict[str, Any], mode: str | None, wanted: Mode) -> None:
    assert ImageGeometry.from_config(CONFIG | changes, mode) == ImageGeometry(wanted, 56)


def test_a_config_without_a_say_takes_the_default() -> None:
    assert ImageGeometry.from_config({}, default="pad") == ImageGeometry("pad", 336)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"shortest_edge": 64}},
        {"crop_size": {"height": 56, "width": 28}},
        {"size": "56", "crop_size": None},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5]},
        {"image_std": [0.5, 0.5, 0.0]},
        {"resample": 17},
        {"resample": "cubic"},
    ],
)
def test_configs_that_these_geometries_cannot_do(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        ImageGeometry.from_config(CONFIG | changes)


def test_aspect_modes() -> None:
    assert aspect_mode(None) == aspect_mode("square") == "crop"
    with pytest.raises(CheckpointError, match="anyres"):
        aspect_mode("anyres")
    with pytest.raises(CheckpointError, match="mode"):
        ImageGeometry("anyres")  # type: ignore[arg-type]


@given(size=sizes, candidates=st.lists(sizes, min_size=1, max_size=6))
def test_best_resolution_is_a_candidate_and_the_first_of_equals(
    size: tuple[int, int], candidates: list[tuple[int, int]]
) -> None:
    best = best_resolution(size, candidates)
    assert best in candidates
    assert best_resolution(size, candidates + candidates) == best


def test_best_resolution_prefers_the_image_s_own_shape() -> None:
    candidates = [(336, 672), (672, 336), (672, 672)]
    assert best_resolution((1000, 400), candidates) == (672, 336)
    assert best_resolution((400, 1000), candidates) == (336, 672)
    with pytest.raises(ValueError, match="candidate"):
        best_resolution((4, 4), [])


@pytest.mark.parametrize(("size", "columns_first"), [((42, 1000), True), ((80, 100), False)])
def test_the_order_of_scaling_is_that_of_pillow_13(
    size: tuple[int, int], columns_first: bool
) -> None:
    image = noise(*size)
    between = (size[0], 56) if columns_first else (56, size[1])
    wanted = image.resize(between, Image.Resampling.BICUBIC).resize((56, 56))
    assert ImageGeometry("resize", 56).fit(image).tobytes() == wanted.tobytes()
