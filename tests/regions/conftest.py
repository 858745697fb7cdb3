"""Strategies for regions and an image to draw on, shared by the tests of this package."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from vip_llava.regions import (
    PALETTE,
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Rle,
    Scribble,
    Triangle,
)

Strategy = st.SearchStrategy[Region]


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Image.Image]:
    """`noise(width, height)`: an RGB image in which every changed pixel shows."""

    def make(width: int, height: int) -> Image.Image:
        pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture(scope="session")
def any_region() -> Callable[..., Strategy]:
    """`any_region(width, height, inside=True)`: a strategy of valid regions of all eight shapes.

    With `inside` false they may reach past the image or lie outside.
    """

    def build(width: int, height: int, *, inside: bool = True) -> Strategy:
        room = 0.0 if inside else 1.5 * max(width, height)
        xs = st.floats(-room, width + room, allow_nan=False, width=32)
        ys = st.floats(-room, height + room, allow_nan=False, width=32)
        spots = st.tuples(xs, ys)
        boxes = st.tuples(xs, ys, xs, ys).filter(lambda b: b[0] < b[2] and b[1] < b[3])
        hexes = st.integers(0, 0xFFFFFF).map(lambda n: f"#{n:06x}")
        looks = st.fixed_dictionaries(
            {},
            optional={
                "color": st.one_of(st.sampled_from(sorted(PALETTE)), hexes),
                "alpha": st.integers(1, 255),
                "width": st.floats(0.5, 30, allow_nan=False),
            },
        )

        def star(center: tuple[float, float], radii: list[float]) -> list[float]:
            """A polygon that can't cross itself: one corner per direction around a centre."""
            flat = []
            for index, radius in enumerate(radii):
                angle = 2 * math.pi * index / len(radii)
                x, y = center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)
                if inside:
                    x, y = min(max(x, 0.0), width), min(max(y, 0.0), height)
                flat += [x, y]
            return flat

        middle = st.tuples(st.floats(2, width - 2), st.floats(2, height - 2))
        least = min(width, height) / 8
        stars = st.builds(
            star, middle, st.lists(st.floats(least, 2 * least), min_size=3, max_size=12)
        )
        if inside:
            middle = st.tuples(
                st.floats(2 * least, width - 2 * least), st.floats(2 * least, height - 2 * least)
            )
            stars = st.builds(
                star, middle, st.lists(st.floats(least, 2 * least), min_size=3, max_size=12)
            )
        radius = st.one_of(st.floats(1, 30), st.tuples(st.floats(1, 30), st.floats(1, 30)))

        def seen(p: list[tuple[float, float]]) -> bool:
            """A thin line along the far border, on no pixel, is refused; a test of its own holds that."""
            return not inside or any(x < width and y < height for x, y in p)

        two = st.lists(spots, min_size=2, max_size=8).filter(
            lambda p: any(q != p[0] for q in p) and seen(p)
        )
        rle = st.builds(
            lambda seed, share: Rle.from_mask(random_mask(width, height, seed, share)),
            st.integers(0, 99),
            st.sampled_from([0.02, 0.5, 0.98]),
        )

        def flat_triangle(p: list[tuple[float, float]]) -> bool:
            (x1, y1), (x2, y2), (x3, y3) = p
            return abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) < 1e-3

        kinds: list[Strategy] = [
            st.builds(lambda b, k: Box(*b, **k), boxes, looks),
            st.builds(lambda b, k: Ellipse(*b, **k), boxes, looks),
            st.builds(
                lambda p, k: Triangle(p, **k),
                st.lists(spots, min_size=3, max_size=3).filter(
                    lambda p: not flat_triangle(p) and seen(p)
                ),
                looks,
            ),
            st.builds(lambda p, r, k: Point(*p, radius=r, **k), spots, st.none() | radius, looks),
            st.builds(lambda p, k: Scribble(p, **k), two, looks),
            st.builds(
                lambda p, f, k: Arrow(p[0], p[-1], filled=f, **k),
                two.filter(lambda p: p[0] != p[-1]),
                st.booleans(),
                looks,
            ),
            st.builds(lambda p, k: Contour(p, **k), st.lists(stars, min_size=1, max_size=3), looks),
            st.builds(lambda p, k: Mask(p, **k), st.lists(stars, min_size=1, max_size=3), looks),
            st.builds(lambda r, k: Contour(rle=r, **k), rle, looks),
            st.builds(lambda r, k: Mask(rle=r, **k), rle, looks),
        ]
        return st.one_of(kinds)

    return build


def random_mask(width: int, height: int, seed: int, share: float) -> np.ndarray:
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask[height // 2, width // 2] = True
    return mask
