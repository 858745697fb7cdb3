"""The eight shapes: validation, error messages, and frames."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.errors import RegionError
from vip_llava.regions import (
    SHAPES,
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
    repair_polygons,
)

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
BOWTIE = [10, 10, 30, 30, 30, 10, 10, 30]
NAN, INF = math.nan, math.inf


def test_the_eight_shapes() -> None:
    assert list(SHAPES) == [
        "box",
        "ellipse",
        "triangle",
        "point",
        "scribble",
        "arrow",
        "contour",
        "mask",
    ]
    assert all(kind.shape == name for name, kind in SHAPES.items())


def test_regions_are_frozen_values() -> None:
    box = Box(1, 2, 3, 4, color="red", id="1")
    assert box == Box(x1=1.0, y1=2.0, x2=3.0, y2=4.0, color="red", id="1")
    assert hash(box) == hash(Box(1, 2, 3, 4, color="red", id="1"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        box.x1 = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        object.__setattr__(box, "other", 5)
    with pytest.raises(TypeError):
        Box(1, 2, 3, 4, "pixel")  # type: ignore[misc]  # looks are given by name


BAD_GEOMETRY: list[tuple[Callable[..., Region], dict[str, Any], str]] = [
    (Box, {"x1": NAN, "y1": 2, "x2": 3, "y2": 4}, "x1 must be finite"),
    (Box, {"x1": 1, "y1": 2, "x2": INF, "y2": 4}, "x2 must be finite"),
    (Box, {"x1": 1, "y1": 2, "x2": 1e7, "y2": 4}, "x2 is 1e\\+07, beyond the limit"),
    (Box, {"x1": 1, "y1": 2, "x2": 10**5000, "y2": 4}, "x2 must be one finite number"),
    (Box, {"x1": 5, "y1": 2, "x2": 3, "y2": 4}, "reversed"),
    (Box, {"x1": 1, "y1": 4, "x2": 3, "y2": 2}, "reversed"),
    (Box, {"x1": 1, "y1": 2, "x2": 1, "y2": 4}, "has no area"),
    (Box, {"x1": "1", "y1": 2, "x2": 3, "y2": 4}, "x1 must be a number"),
    (Box, {"x1": True, "y1": 2, "x2": 3, "y2": 4}, "x1 must be a number"),
    (Ellipse, {"x1": 1, "y1": 2, "x2": 3, "y2": 2}, "has no area"),
    (Ellipse, {"x1": 1, "y1": -INF, "x2": 3, "y2": 2}, "y1 must be finite"),
    (Triangle, {"points": [(1, 2), (3, 4)]}, "needs 3 points, got 2"),
    (Triangle, {"points": [(1, 2)] * 4}, "needs 3 points, got 4"),
    (Triangle, {"points": [(1, 1), (2, 2), (3, 3)]}, "no area"),
    (Triangle, {"points": [(1, 1), (2, 2), (3, NAN)]}, "point 3 y must be finite"),
    (Triangle, {"points": "abc"}, "must be a list"),
    (Point, {"x": NAN, "y": 1}, "x must be finite"),
    (Point, {"x": 1, "y": 1, "radius": 0}, "radius must be over 0"),
    (Point, {"x": 1, "y": 1, "radius": -3}, "radius must be over 0"),
    (Point, {"x": 1, "y": 1, "radius": (3, NAN)}, "radius y must be finite"),
    (Point, {"x": 1, "y": 1, "radius": (1, 2, 3)}, "radius must be"),
    (Scribble, {"points": [(1, 2)]}, "needs 2 to 10000 points, got 1"),
    (Scribble, {"points": []}, "got 0"),
    (Scribble, {"points": [(1, 2)] * 10_001}, "got 10001"),
    (Scribble, {"points": [(1, 2), (1, 2)]}, "no length"),
    (Scribble, {"points": [(1, 2), (1, 2, 3)]}, "point 2 must be"),
    (Scribble, {"points": [(1, 2), 7]}, "point 2 must be"),
    (Arrow, {"tail": (1, 2), "tip": (1, 2)}, "no length"),
    (Arrow, {"tail": (1, INF), "tip": (1, 2)}, "tail y must be finite"),
    (Arrow, {"tail": (1, 2), "tip": None}, "tip must be"),
    (Arrow, {"tail": (1, 2), "tip": (3, 4), "head": 0}, "head must be over 0"),
    (Arrow, {"tail": (1, 2), "tip": (3, 4), "filled": 1}, "filled must be"),
]
for _area in (Contour, Mask):
    BAD_GEOMETRY += [
        (_area, {}, "either polygons or rle"),
        (_area, {"polygons": [SQUARE], "rle": {"size": [2, 2], "counts": [0, 4]}}, "either"),
        (_area, {"polygons": []}, "at least one"),
        (_area, {"polygons": SQUARE}, "list of polygons"),
        (_area, {"polygons": [[1, 2, 3, 4]]}, "polygon 1 needs at least 3 points, got 2"),
        (_area, {"polygons": [SQUARE, [1, 2, 3, 4, 5]]}, "polygon 2 has 5 numbers"),
        (_area, {"polygons": [[1, 1, 2, 2, 3, 3]]}, "polygon 1 has no area"),
        (_area, {"polygons": [[1, 1, 2, 2, 3, 3, 4, 4]]}, "polygon 1 has no area"),
        (_area, {"polygons": [[1, 1, 5, 1, 9, 1, 5, 1]]}, "polygon 1 has no area"),
        (_area, {"polygons": [SQUARE, BOWTIE]}, r"polygon 2 crosses itself near \(20, 20\)"),
        (_area, {"polygons": [[1, 2, NAN, 4, 5, 6]]}, "polygon 1: number 3 must be finite|finite"),
        (_area, {"polygons": [[0, 0] * 20_001]}, "more than 20000"),
        (_area, {"polygons": [[i, i * i % 7] for i in range(3)]}, "needs at least 3 points"),
        (_area, {"rle": {"size": [2, 2], "counts": [0, 4]}, "frame": "unit"}, "counts pixels"),
    ]


@pytest.mark.parametrize(("kind", "geometry", "rule"), BAD_GEOMETRY)
def test_bad_geometry_names_the_region_and_the_rule(
    kind: type[Region], geometry: dict[str, Any], rule: str
) -> None:
    with pytest.raises(RegionError, match=rf"^{kind.shape}:? .*({rule})|^{kind.shape}: ({rule})"):
        kind(**geometry)
    with pytest.raises(RegionError, match=rf"^region 'dog' \({kind.shape}\):? .*({rule})"):
        kind(**geometry, id="dog")


@pytest.mark.parametrize(
    ("looks", "rule"),
    [
        ({"alpha": -1}, "alpha"), ({"alpha": 256}, "alpha"), ({"alpha": 1.5}, "alpha"), ({"alpha": True}, "alpha"),
        ({"width": 0}, "width"), ({"width": -2}, "width"), ({"width": NAN}, "width"), ({"width": 1001}, "width"),
        ({"width": "3"}, "width"), ({"frame": "image"}, "frame"), ({"frame": None}, "frame"),
        ({"id": ""}, "id"), ({"id": "a b"}, "id"), ({"id": "<1>"}, "id"), ({"id": "x" * 65}, "id"), ({"id": 1}, "id"),
    ],
)  # fmt: skip
def test_invalid_styles(looks: dict[str, Any], rule: str) -> None:
    with pytest.raises(RegionError, match=rule):
        Box(1, 2, 3, 4, **looks)


def test_polygons_may_touch_themselves_and_overlap_each_other() -> None:
    touching = [0, 0, 10, 0, 10, 10, 5, 0.0001, 0, 10]
    Mask([touching])
    eight = [0, 0, 5, 5, 10, 0, 10, 10, 5, 5, 0, 10]
    Mask([eight])
    Contour([SQUARE, [20, 20, 40, 20, 40, 40]])


def test_repairing_a_crossing_polygon() -> None:
    parts = repair_polygons([BOWTIE, SQUARE, [1, 1, 2, 2], [1, 1, 2, 2, 3, 3]])
    assert len(parts) == 3
    mask = Mask(parts)
    assert mask.extent((50, 50)) == (10, 10, 30, 30)


def test_numpy_points() -> None:
    assert Scribble(np.array([[1, 2], [3, 4]])).points == ((1.0, 2.0), (3.0, 4.0))  # type: ignore[arg-type]
    assert Box(*np.array([1, 2, 3, 4], dtype=np.float32)) == Box(1, 2, 3, 4)
    assert Mask(np.array([SQUARE])).polygons == Mask([SQUARE]).polygons  # type: ignore[arg-type]


@given(data=st.data())
def test_pixel_unit_round_trip(
    any_region: Callable[..., st.SearchStrategy[Region]], data: st.DataObject
) -> None:
    size = data.draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    region = data.draw(any_region(60, 40, inside=False))
    if getattr(region, "rle", None) is not None:
        with pytest.raises(RegionError, match="counts pixels"):
            region.to_frame("unit", size)
        return
    unit = region.to_frame("unit", size)
    assert unit.frame == "unit"
    assert type(region).from_json(unit.to_json()) == unit  # a unit region obeys the rules, too
    back = unit.to_frame("pixel", size)
    assert back.extent(size) == pytest.approx(region.extent(size), abs=1e-6)
    assert back.to_json().keys() == region.to_json().keys()


def test_unit_lengths_scale_with_the_longer_side() -> None:
    point = Point(0.5, 0.5, radius=0.1, frame="unit").to_frame("pixel", (200, 100))
    assert (point.x, point.y, point.radius) == (100, 50, 20)
    arrow = Arrow((0, 0), (1, 1), head=0.1, frame="unit").to_frame("pixel", (200, 100))
    assert (arrow.tip, arrow.head) == ((200, 100), 20)


def test_a_unit_region_beyond_the_pixel_limit() -> None:
    with pytest.raises(RegionError, match="beyond"):
        Box(0, 0, 1e5, 1, frame="unit").to_frame("pixel", (640, 480))


def test_bounds_are_cut_off_at_the_image() -> None:
    size = (200, 100)
    assert Box(-10, 20, 50, 60).bounds(size) == (0, 20, 50, 60)
    assert Ellipse(0.25, 0.5, 0.75, 2, frame="unit").bounds(size) == (50, 50, 150, 100)
    assert Point(10, 50, radius=20).bounds(size) == (0, 30, 30, 70)
    assert Point(100, 50).bounds(size) == (96, 46, 104, 54)
    assert Arrow((0, 0), (100, 50)).bounds(size) == (80, 30, 120, 70)
    assert Arrow((0, 0), (195, 95)).bounds(size) == (175, 75, 200, 100)
    assert Scribble([(0, 0), (90, 0)]).bounds(size) == (0, 0, 90, 0.5)
    assert Mask(rle={"size": [100, 200], "counts": [110, 20, 19870]}).bounds(size) == (1, 10, 2, 30)  # type: ignore[arg-type]
    for outside in (Box(200, 0, 300, 50), Arrow((0, 0), (201, 5)), Point(-50, 50, radius=20)):
        with pytest.raises(RegionError, match="outside"):
            outside.bounds(size)


@given(data=st.data())
def test_bounds_lie_in_the_image(
    any_region: Callable[..., st.SearchStrategy[Region]], data: st.DataObject
) -> None:
    size = (60, 40)
    region = data.draw(any_region(*size, inside=False))
    try:
        x1, y1, x2, y2 = region.bounds(size)
    except RegionError as error:
        assert "outside" in str(error)
        return
    assert 0 <= x1 < x2 <= 60
    assert 0 <= y1 < y2 <= 40


def test_the_largest_polygon_is_checked_in_time() -> None:
    corners = []
    for step in range(20_000):
        angle, radius = 2 * math.pi * step / 20_000, 200 + 20 * (step % 2)
        corners += [320 + radius * math.cos(angle), 240 + radius * math.sin(angle)]
    start = time.perf_counter()
    Mask([corners])
    assert time.perf_counter() - start < 5
