"""Marks on an image are found where they were drawn, and not in photos without marks."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vip_llava.models.default.find_marks import NamedMark, find_mark, named_marks
from vip_llava.regions import (
    PALETTE,
    Arrow,
    Box,
    Contour,
    Ellipse,
    Point,
    Region,
    Scribble,
    Triangle,
    draw,
)

PHOTO = Path(__file__).parents[3] / "examples" / "photos" / "cat.jpg"
MARKS: list[Region] = [
    Box(60, 40, 190, 150),
    Ellipse(60, 40, 190, 150),
    Triangle([(60, 140), (120, 40), (190, 150)]),
    Point(120, 90),
    Scribble([(60, 60), (90, 110), (130, 60), (170, 120), (190, 70)]),
    Arrow(tail=(60, 40), tip=(150, 110)),
    Contour(polygons=[[60, 40, 190, 60, 170, 150, 80, 140]]),
]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB").resize((400, 266))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def off(found: Region | None, mark: Region) -> float:
    """The largest distance, in pixels, between sides (or ends) of the found mark and the drawn one."""
    assert found is not None
    if isinstance(mark, Arrow) and isinstance(found, Arrow):
        return max(math.dist(found.tip, mark.tip), math.dist(found.tail, mark.tail))
    pairs = zip(found.bounds((400, 266)), mark.bounds((400, 266)), strict=True)
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.shape)
@pytest.mark.parametrize("color", PALETTE)
def test_a_mark_is_found_where_it_is(mark: Region, color: str, photo: Image.Image) -> None:
    found = find_mark(draw(photo, [mark.changed(color=color)]), mark.shape, color)
    # The tolerance includes the line width, and the radius of a point.
    assert off(found, mark) < (12 if isinstance(mark, Point) else 7)
    assert found is not None
    assert found.color == color


@pytest.mark.parametrize("mark", [MARKS[0], MARKS[1], MARKS[3]], ids=lambda mark: mark.shape)
@pytest.mark.parametrize("color", ["red", "lime", "blue", "fuchsia"])
def test_jpeg_and_scale_do_not_hide_a_mark(mark: Region, color: str, photo: Image.Image) -> None:
    drawn = draw(photo, [mark.changed(color=color)])
    assert off(find_mark(jpeg(drawn, 75), mark.shape, color), mark) < 12
    large = jpeg(drawn.resize((2000, 1330)), 90)
    found = find_mark(large, mark.shape, color)
    assert found is not None
    assert [v / 5 for v in found.bounds(large.size)] == pytest.approx(
        mark.bounds(drawn.size), abs=12
    )


@pytest.mark.parametrize("shape", ["box", "ellipse", "point", "triangle", "arrow", "mask"])
def test_nothing_is_found_on_a_bare_photo(shape: str, photo: Image.Image) -> None:
    # The photo has many brown and orange lines, which open shapes of those colors resemble.
    sure = set(PALETTE) if shape in ("box", "ellipse", "point") else {"red", "lime", "blue", "aqua"}
    assert [color for color in sure if find_mark(photo, shape, color) is not None] == []


def test_a_filled_area_of_the_color_is_not_a_box(photo: Image.Image) -> None:
    image = photo.copy()
    image.paste((255, 0, 0), (60, 40, 190, 150))
    assert find_mark(image, "box", "red") is None
    assert (
        off(find_mark(draw(image, [Box(220, 60, 330, 200)]), "box", "red"), Box(220, 60, 330, 200))
        < 7
    )


def test_crossing_marks_of_two_colors_are_found(photo: Image.Image) -> None:
    one, two = Box(20, 20, 150, 200, color="red"), Box(120, 90, 380, 240, color="blue")
    drawn = draw(photo, [one, two])
    assert off(find_mark(drawn, "box", "blue"), two) < 7
    # The second mark covers a part of the first one.
    assert off(find_mark(drawn, "box", "red"), one) < 7


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (30, 30)])
def test_images_of_any_size_are_searched(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8), "RGB")
    red = Image.new("RGB", size, (255, 0, 0))
    for shape in ("box", "ellipse", "triangle", "point", "scribble", "contour", "arrow"):
        for image in (noise, red):
            found = find_mark(image, shape, "red")
            assert found is None or found.bounds(size)


def test_named_marks_are_parsed() -> None:
    text = "Is the thing within the red rectangle left of the Blue circle? And the red rectangle?"
    assert named_marks(text) == (
        NamedMark("box", "red", "red rectangle"),
        NamedMark("ellipse", "blue", "blue circle"),
    )
    assert named_marks("with the gold mask contour")[0].shape == "contour"
    assert named_marks("a coloured rectangle, predatored arrows") == ()
