"""Regions to JSON and back; deviations from the format are errors that name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.errors import RegionError
from vip_llava.regions import (
    Arrow,
    Box,
    Contour,
    Mask,
    Point,
    Region,
    region_from_json,
    regions_from_json,
)

ONE_OF_EACH: list[dict[str, Any]] = [
    {"shape": "box", "frame": "pixel", "box": [1, 2, 30, 40]},
    {"shape": "ellipse", "frame": "unit", "box": [0.1, 0.2, 0.3, 0.4]},
    {"shape": "triangle", "frame": "pixel", "points": [[1, 2], [30, 4], [5, 60]]},
    {"shape": "scribble", "frame": "pixel", "points": [[1, 2], [3, 4.5]]},
    {"shape": "point", "frame": "pixel", "point": [5, 6], "radius": 3},
    {"shape": "arrow", "frame": "pixel", "tail": [1, 2], "tip": [30, 4]},
    {"shape": "contour", "frame": "pixel", "polygons": [[1, 2, 30, 4, 5, 60]]},
    {"shape": "mask", "frame": "pixel", "rle": {"size": [2, 3], "counts": "231"}},
]
LOOKS = {"id": "a-1", "color": "#ff8000", "alpha": 128, "width": 3}


@pytest.mark.parametrize("value", ONE_OF_EACH, ids=lambda value: value["shape"])
def test_the_format_of_the_design_comes_back_unchanged(value: dict[str, Any]) -> None:
    for form in (value, value | LOOKS):
        assert region_from_json(form).to_json() == form
        assert json.loads(json.dumps(region_from_json(form).to_json())) == form


@given(data=st.data())
def test_round_trip(
    any_region: Callable[..., st.SearchStrategy[Region]], data: st.DataObject
) -> None:
    region = data.draw(any_region(60, 40, inside=False))
    text = json.dumps(region.to_json(), allow_nan=False)
    assert Region.from_json(json.loads(text)) == region


def test_uncompressed_counts_and_rgb_colours_have_one_spelling() -> None:
    plain = {"shape": "mask", "frame": "pixel", "rle": {"size": [2, 3], "counts": [2, 3, 1]}}
    assert region_from_json(plain) == region_from_json(ONE_OF_EACH[-1])
    assert Box(1, 2, 3, 4, color=(255, 128, 0)).to_json()["color"] == "#ff8000"


def test_optional_parts_of_arrow_and_point() -> None:
    arrow = Arrow((1, 2), (3, 4), head=5, filled=False)
    assert arrow.to_json() == {
        "shape": "arrow", "frame": "pixel", "tail": [1, 2], "tip": [3, 4], "head": 5, "filled": False,
    }  # fmt: skip
    assert Region.from_json(arrow.to_json()) == arrow
    oval = Point(1, 2, radius=(3, 4))
    assert oval.to_json()["radius"] == [3, 4]
    assert Region.from_json(oval.to_json()) == oval


def test_numpy_geometry_becomes_plain_json() -> None:
    corners = np.array([[1, 2], [30, 4], [5, 60]], dtype=np.float32)
    value = json.dumps(Contour(polygons=[corners]).to_json())  # type: ignore[arg-type]
    assert json.loads(value)["polygons"] == [[1, 2, 30, 4, 5, 60]]


@pytest.mark.parametrize("value", ONE_OF_EACH, ids=lambda value: value["shape"])
def test_unknown_and_missing_keys(value: dict[str, Any]) -> None:
    with pytest.raises(
        RegionError, match=rf"region '9' \({value['shape']}\): unknown key 'colour'"
    ):
        region_from_json(value | {"id": "9", "colour": "red"})
    for key in value:
        if key in ("shape", "radius"):
            continue
        with pytest.raises(RegionError, match=key if key == "frame" else "missing"):
            region_from_json({k: v for k, v in value.items() if k != key})


@pytest.mark.parametrize("bad", [None, 7, "box", [], {"shape": "circle"}, {"shape": ["box"]}, {}])
def test_a_value_that_is_not_a_region(bad: object) -> None:
    with pytest.raises(RegionError):
        region_from_json(bad)


def test_a_missing_shape_is_named_as_missing() -> None:
    with pytest.raises(RegionError, match='the key "shape" is missing'):
        region_from_json({"frame": "pixel", "box": [1, 2, 30, 40]})


def test_both_polygons_and_rle() -> None:
    both = {**ONE_OF_EACH[6], "rle": {"size": [2, 3], "counts": "231"}}
    with pytest.raises(RegionError, match="both are given"):
        region_from_json(both)


def test_a_list_names_the_position_of_an_invalid_region() -> None:
    good = ONE_OF_EACH[0]
    assert regions_from_json([good, good]) == (Box(1, 2, 30, 40), Box(1, 2, 30, 40))
    with pytest.raises(RegionError, match="region number 2: box: the corners are reversed"):
        regions_from_json([good, good | {"box": [30, 2, 1, 40]}])
    with pytest.raises(RegionError, match="region number 3"):
        regions_from_json([good, good, 5])
    with pytest.raises(RegionError, match="must be a JSON list"):
        regions_from_json(good)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(data=st.data())
def test_a_changed_value_gives_a_region_or_a_region_error(data: st.DataObject) -> None:
    value = dict(data.draw(st.sampled_from(ONE_OF_EACH)) | LOOKS)
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(json_values)
    try:
        region = region_from_json(value)
    except RegionError:
        return
    assert isinstance(region, Region)
    assert Region.from_json(region.to_json()) == region


def test_masks_are_hashable_values() -> None:
    a, b = Mask([[1, 2, 30, 4, 5, 60]]), Mask([[(1, 2), (30, 4), (5, 60)]])  # type: ignore[arg-type]
    assert len({a, b}) == 1
