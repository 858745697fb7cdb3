"""Colours: nine names, "#rrggbb", three numbers; errors name other values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.errors import RegionError
from vip_llava.regions import PALETTE, Box, color_name, rgb
from vip_llava.regions.colors import normalize_color


def test_palette_has_the_nine_trained_names_in_order() -> None:
    assert list(PALETTE) == [
        "red",
        "lime",
        "blue",
        "yellow",
        "fuchsia",
        "aqua",
        "orange",
        "purple",
        "gold",
    ]
    assert PALETTE["red"] == (255, 0, 0)
    assert len(set(PALETTE.values())) == 9


@pytest.mark.parametrize("name", list(PALETTE))
def test_names_and_values_agree(name: str) -> None:
    assert rgb(name) == PALETTE[name]
    assert color_name(PALETTE[name]) == name
    assert color_name("#{:02X}{:02X}{:02X}".format(*PALETTE[name])) == name


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_any_rgb_survives(value: tuple[int, int, int]) -> None:
    text = normalize_color(value)
    assert rgb(text) == rgb(value) == value
    assert normalize_color(text) == text == text.lower()


def test_numpy_numbers_and_lists_are_fine() -> None:
    assert normalize_color([np.uint8(1), np.int64(2), 3]) == "#010203"  # type: ignore[list-item]
    assert color_name("#010203") is None


@pytest.mark.parametrize(
    "bad",
    ["green", "Red", "", "#12345", "#1234567", "#12345g", "#123456\n", (1, 2), (1, 2, 3, 4), (1, 2, 256),
     (-1, 0, 0), (1.0, 2, 3), (True, 2, 3), ("1", 2, 3), 7, b"red", {"r": 1}, (float("nan"), 0, 0)],
)  # fmt: skip
def test_everything_else_is_an_error_that_names_the_region(bad: object) -> None:
    with pytest.raises(RegionError, match=r"region 'x' \(box\): unknown colour .*red, lime"):
        Box(1, 2, 3, 4, color=bad, id="x")  # type: ignore[arg-type]
