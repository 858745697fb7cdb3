"""The original's flags and the regions that they describe."""

from __future__ import annotations

import math
from typing import Any

import pytest
from PIL import Image

from vip_llava.cli.legacy_options import LEGACY_SHAPES, LegacyOptions, legacy_region
from vip_llava.errors import RegionError
from vip_llava.regions import Arrow, Box, Contour, Ellipse, Mask, Point, Scribble, Triangle, draw

SIZE = (672, 400)
BOX = "100,80,260,300"


def region(shape: str, *, bbox: str | None = BOX, seg: str | None = None, **style: object) -> Any:
    options = LegacyOptions(bbox=[bbox] if bbox else None, seg=[seg] if seg else None, shape=shape)
    return legacy_region(options, SIZE, style)


KINDS = {
    "rectangle": Box,
    "ellipse": Ellipse,
    "triangle": Triangle,
    "point": Point,
    "scribble": Scribble,
    "mask contour": Contour,
    "mask": Mask,
    "arrow": Arrow,
}


@pytest.mark.parametrize("shape", LEGACY_SHAPES)
def test_every_shape_works_with_a_box_alone(shape: str) -> None:
    found = region(shape)
    assert isinstance(found, KINDS[shape])
    x1, y1, x2, y2 = found.bounds(SIZE)
    assert 100 <= (x1 + x2) / 2 <= 260 and 80 <= (y1 + y2) / 2 <= 300
    if shape not in ("arrow", "point"):
        assert (x1, y1, x2, y2) >= (100, 80, 0, 0) and (x2, y2) <= (260, 300)


@pytest.mark.parametrize("shape", LEGACY_SHAPES)
def test_the_same_flags_draw_the_same_image(shape: str) -> None:
    photo = Image.new("RGB", SIZE, "white")
    first, second = (draw(photo, [region(shape)]).tobytes() for _ in range(2))
    assert first == second != photo.tobytes()


def test_defaults_are_those_of_the_original() -> None:
    """Red, alpha 128, width 3 on an image of 336 pixels; this photo is twice as large."""
    found = region("rectangle")
    assert found == Box(100, 80, 260, 300, color=(255, 0, 0), alpha=128, width=6)


def test_width_and_alpha_mean_what_they_mean_in_the_original() -> None:
    found = region("rectangle", width=5.0, alpha=200)
    assert (found.width, found.alpha) == (10, 200)
    tiny = legacy_region(LegacyOptions(bbox=["1,1,9,9"]), (20, 20), {"width": 3.0})
    assert tiny.width == 1


@pytest.mark.parametrize("text", ["0,255,0", "[0, 255, 0]", "0 255 0"])
def test_rgb(text: str) -> None:
    found = legacy_region(LegacyOptions(bbox=[BOX], rgb=text), SIZE, {})
    assert found.color == "#00ff00"


@pytest.mark.parametrize("text", ["1,2", "1,2,256", "1,2,3.5", "red", "-1,0,0"])
def test_a_wrong_rgb_is_refused(text: str) -> None:
    with pytest.raises(RegionError, match="--rgb"):
        legacy_region(LegacyOptions(bbox=[BOX], rgb=text), SIZE, {})


def test_an_outline_is_used_unchanged() -> None:
    seg = "[[110, 90, 200, 90, 200, 200]]"
    assert region("mask", seg=seg).polygons == ((110, 90, 200, 90, 200, 200),)
    assert region("mask contour", seg=seg).polygons == ((110, 90, 200, 90, 200, 200),)
    assert region("ellipse", seg=seg).bounds(SIZE) == (110, 90, 200, 200)


def test_an_outline_alone_gives_the_box() -> None:
    assert region("rectangle", bbox=None, seg="110,90,200,90,200,200").bounds(SIZE) == (
        110,
        90,
        200,
        200,
    )


def test_a_point_lies_inside_a_hollow_outline() -> None:
    horseshoe = "100,100,110,100,110,190,190,190,190,100,200,100,200,200,100,200"
    found = region("point", bbox=None, seg=horseshoe)
    x, y = found.x, found.y
    assert (100 <= x <= 110 or 190 <= x <= 200 or 190 <= y <= 200) and 100 <= x <= 200


@pytest.mark.parametrize("corner", ["0,0,9,9", "660,390,671,399", "0,390,9,399"])
def test_an_arrow_starts_inside_the_photo(corner: str) -> None:
    found = region("arrow", bbox=corner)
    assert 0 <= found.tail[0] <= SIZE[0] and 0 <= found.tail[1] <= SIZE[1]
    assert math.dist(found.tail, found.tip) > 20


@pytest.mark.parametrize("name", ["star", "rectangles", "9"])
def test_an_unknown_shape_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RegionError, match="one of rectangle, ellipse"):
        region(name)


def test_a_shape_without_box_or_outline_is_refused() -> None:
    with pytest.raises(RegionError, match="need --bbox"):
        region("arrow", bbox=None)


@pytest.mark.parametrize("bbox", ["1,2,3", "9,9,1,1", "5,5,5,9", "a,b,c,d", "nan,1,2,3"])
@pytest.mark.parametrize("shape", LEGACY_SHAPES)
def test_a_wrong_box_is_refused_for_every_shape(shape: str, bbox: str) -> None:
    with pytest.raises(RegionError):
        region(shape, bbox=bbox)


@pytest.mark.parametrize("seg", ["1,2", "1,2,3,4", "x", "[[1,2],[3,4]]", "[]"])
@pytest.mark.parametrize("shape", LEGACY_SHAPES)
def test_a_wrong_outline_is_refused_for_every_shape(shape: str, seg: str) -> None:
    with pytest.raises(RegionError):
        region(shape, seg=seg)


def test_a_self_crossing_outline_is_repaired() -> None:
    found = region("mask", seg="100,100,200,200,200,100,100,200")
    assert len(found.polygons) == 2 and found.bounds(SIZE) == (100, 100, 200, 200)
