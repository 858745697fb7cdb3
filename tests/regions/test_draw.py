"""Drawing: which pixels change, blending, fast paths against slow ones, and time limits."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vip_llava.errors import RegionError
from vip_llava.regions import (
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
    draw,
    draw_resolved,
    region_from_json,
    resolve,
    rgb,
)
from vip_llava.regions.draw import opacity_mask
from vip_llava.regions.strokes import dilate

Noise = Callable[[int, int], Image.Image]
Regions = Callable[..., st.SearchStrategy[Region]]
SQUARE = [20.0, 20, 60, 20, 60, 50, 20, 50]


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    """bool [height, width]: which pixels differ."""
    return (np.asarray(before.convert("RGB")) != np.asarray(after)).any(axis=2)


def on_black(region: Region, size: tuple[int, int] = (100, 80)) -> np.ndarray:
    """bool [height, width]: the pixels that an opaque white drawing of the region touches."""
    black = Image.new("RGB", size)
    return changed(black, draw(black, [region.changed(color="#ffffff", alpha=255)]))


def test_a_box_is_its_four_lines() -> None:
    pixels = on_black(Box(20, 20, 60, 50, width=2))
    expected = np.zeros((80, 100), dtype=bool)
    expected[20:51, 20:61] = True
    expected[22:49, 22:59] = False
    np.testing.assert_array_equal(pixels, expected)


def test_a_box_at_or_over_the_border_is_closed() -> None:
    for box in (Box(0, 0, 100, 80, width=1), Box(-50, -20, 140, 900, width=1)):
        pixels = on_black(box)
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert edge.all()
        assert not pixels[1:-1, 1:-1].any()


def test_a_mask_is_filled_and_a_contour_is_not() -> None:
    filled, outline = on_black(Mask([SQUARE])), on_black(Contour([SQUARE], width=1))
    assert filled[20:51, 20:61].all()
    assert filled.sum() == 31 * 41
    assert outline[19:52, 19:62].sum() == outline.sum() == 33 * 43 - 27 * 37
    assert not outline[22:49, 22:59].any()


def test_rle_and_polygons_of_the_same_area_look_the_same() -> None:
    pixels = np.zeros((80, 100), dtype=bool)
    pixels[20:51, 20:61] = True
    rle = Rle.from_mask(pixels)
    np.testing.assert_array_equal(on_black(Mask(rle=rle)), on_black(Mask([SQUARE])))
    for width in (1, 2, 5):
        np.testing.assert_array_equal(
            on_black(Contour(rle=rle, width=width)), on_black(Contour([SQUARE], width=width))
        )


def test_an_rle_over_the_whole_image_has_a_visible_contour() -> None:
    outline = on_black(Contour(rle=Rle.from_mask(np.ones((80, 100), dtype=bool)), width=1))
    assert outline[0].all()
    assert outline[:, -1].all()
    assert not outline[5:-5, 5:-5].any()


def test_an_ellipse_a_dot_and_a_triangle() -> None:
    ellipse = on_black(Ellipse(20, 20, 60, 50, width=2))
    assert ellipse[20, 40]
    assert ellipse[35, 20]
    assert not ellipse[35, 40]
    assert not ellipse[20, 20]
    dot = on_black(Point(40, 30, radius=5))
    assert dot[30, 40]
    assert math.isclose(dot.sum(), math.pi * 5.5**2, rel_tol=0.1)
    oval = on_black(Point(40, 30, radius=(10, 3)))
    assert np.nonzero(oval.any(axis=0))[0].tolist() == list(range(30, 51))
    assert np.nonzero(oval.any(axis=1))[0].tolist() == list(range(27, 34))
    triangle = on_black(Triangle([(20, 20), (60, 20), (40, 60)], width=2))
    assert triangle[20, 30]
    assert not triangle[30, 40]


def test_an_arrow_ends_at_its_tip() -> None:
    solid = on_black(Arrow((10, 40), (70, 40), head=20, width=3))
    rows, columns = np.nonzero(solid)
    assert (columns.min(), columns.max()) == (10, 70)
    assert solid[40, 10:71].all()
    assert rows.max() - rows.min() == pytest.approx(2 * 20 * math.sin(math.radians(60)), abs=2)
    lines = on_black(Arrow((10, 40), (70, 40), head=20, width=3, filled=False))
    assert lines.sum() < solid.sum()
    assert lines[40, 10:70].all()


def test_a_sharp_bend_of_a_scribble_is_round() -> None:
    points = [(20, 60), (50, 20), (80, 60)]
    scribble = on_black(Scribble(points, width=9))
    rows, columns = np.mgrid[:80, :100]
    assert scribble[(rows - 20) ** 2 + (columns - 50) ** 2 <= 3.9**2].all()
    gap_free = on_black(Scribble([(20, 40), (50, 40), (80, 40)], width=9))
    assert gap_free[36:45, 20:80].all()


@given(alpha=st.integers(0, 255), value=st.integers(0, 255), ink=st.integers(0, 255))
def test_blending_is_rounded_mixing(alpha: int, value: int, ink: int) -> None:
    image = Image.new("RGB", (30, 20), (value,) * 3)
    color = (ink,) * 3
    regions: list[Region] = [Box(2, 2, 9, 9), Point(15, 10, radius=4), Mask([[20, 2, 28, 2, 28, 9]]), Arrow((2, 18), (12, 18))]  # fmt: skip
    for region in regions:
        after = draw(image, [region.changed(color="#" + f"{ink:02x}" * 3, alpha=alpha)])
        mixed = (ink * alpha + value * (255 - alpha)) / 255
        colors = {pixel for _, pixel in after.getcolors() or []}
        assert all(min(abs(c[0] - value), abs(c[0] - mixed)) <= 0.5 for c in colors), (
            color,
            colors,
        )


@given(data=st.data())
def test_the_given_image_is_untouched_and_the_result_deterministic(
    any_region: Regions, noise: Noise, data: st.DataObject
) -> None:
    image = noise(60, 40)
    before = image.tobytes()
    regions = data.draw(st.lists(any_region(60, 40), max_size=4))
    first, second = draw(image, regions), draw(image, regions)
    assert image.tobytes() == before
    assert (first.mode, first.size) == ("RGB", (60, 40))
    assert first.tobytes() == second.tobytes()
    again = draw_resolved(image, resolve(regions, image.size).regions)
    assert again.tobytes() == first.tobytes()
    read = [region_from_json(region.to_json()) for region in resolve(regions, image.size).regions]
    assert draw(image, read).tobytes() == first.tobytes()


@given(data=st.data())
def test_only_pixels_near_the_region_change_and_some_do(
    any_region: Regions, data: st.DataObject
) -> None:
    region = data.draw(any_region(60, 40))
    size = (60, 40)
    x1, y1, x2, y2 = region.extent(size)
    done = resolve([region], size).regions[0]
    reach = 0.0 if isinstance(region, (Box, Ellipse, Mask, Point)) else float(done.width or 0) + 1
    if isinstance(done, Arrow):
        reach += done.head or 0
    pixels = on_black(region, size)
    assert pixels.any()
    rows, columns = np.nonzero(pixels)
    assert columns.min() >= math.floor(x1 - reach) - 1
    assert rows.min() >= math.floor(y1 - reach) - 1
    assert columns.max() <= math.ceil(x2 + reach) + 1
    assert rows.max() <= math.ceil(y2 + reach) + 1


@given(data=st.data())
def test_blending_directly_equals_blending_through_a_mask(
    any_region: Regions, noise: Noise, data: st.DataObject
) -> None:
    image = noise(60, 40)
    region = resolve([data.draw(any_region(60, 40))], image.size).regions[0]
    fast = draw_resolved(image, [region])
    if isinstance(region, Box):
        x1, y1, x2, y2 = (int(part) for part in region.extent(image.size))
        width = max(1, int(region.width or 1))
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[y1 : y2 + 1, x1 : x2 + 1] = region.alpha or 0
        right, bottom = min(x2, 59), min(y2, 39)
        mask[y1 + width : max(bottom + 1 - width, 0), x1 + width : max(right + 1 - width, 0)] = 0
        opacity, left, top = Image.fromarray(mask), 0, 0
    else:
        opacity, left, top = opacity_mask(region, image.size, region.alpha or 0)
    full = Image.new("L", image.size)
    full.paste(opacity, (left, top))
    slow = image.copy()
    slow.paste(rgb(region.color or "red"), (0, 0, 60, 40), full)
    assert slow.tobytes() == fast.tobytes()


def test_pasting_in_blocks_equals_pasting_at_once(noise: Noise) -> None:
    image = noise(500, 400)
    for region in (
        Triangle([(5, 5), (490, 20), (200, 390)], width=7),
        Scribble([(9, 9), (480, 300), (20, 380)]),
    ):
        done = resolve([region.changed(alpha=99, color="blue")], image.size).regions[0]
        mask, left, top = opacity_mask(done, image.size, 99)
        assert mask.width * mask.height > 16 * 64 * 64  # large enough to be pasted in blocks
        slow = image.copy()
        slow.paste((0, 0, 255), (left, top, left + mask.width, top + mask.height), mask)
        assert draw_resolved(image, [done]).tobytes() == slow.tobytes()


@given(reach=st.integers(1, 9), seed=st.integers(0, 99))
def test_dilation_equals_the_maximum_of_the_square(reach: int, seed: int) -> None:
    pixels = np.pad((np.random.default_rng(seed).random((7, 9)) < 0.1).astype(np.uint8), reach)
    slow = np.zeros_like(pixels)
    for y, x in zip(*np.nonzero(pixels), strict=True):
        slow[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = 1
    np.testing.assert_array_equal(dilate(pixels.copy(), reach), slow)


def test_later_regions_lie_over_earlier_ones_and_colours_follow_the_order(noise: Noise) -> None:
    image = noise(100, 80)
    boxes = [Box(10, 10, 50, 50), Box(30, 30, 70, 70), Box(5, 5, 90, 75)]
    drawn, resolution = draw(image, boxes), resolve(boxes, image.size)
    assert [region.color for region in resolution.regions] == ["red", "lime", "blue"]
    assert drawn.getpixel((10, 20)) == (255, 0, 0)
    assert drawn.getpixel((50, 30)) == (0, 255, 0)  # here the first and the second cross
    alone = draw(image, resolution.regions[:1])
    assert alone.getpixel((50, 30)) == (255, 0, 0)


def test_unit_and_pixel_frames_draw_the_same(noise: Noise) -> None:
    image = noise(200, 100)
    pixel = [
        Box(20, 30, 120, 70),
        Arrow((20, 30), (120, 70)),
        Point(50, 50, radius=10),
        Mask([SQUARE]),
    ]
    unit = [region.to_frame("unit", image.size) for region in pixel]
    assert draw(image, unit).tobytes() == draw(image, pixel).tobytes()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGBA"])
def test_other_modes_become_rgb(mode: str, noise: Noise) -> None:
    image = noise(40, 30).convert(mode)
    drawn = draw(image, [Box(5, 5, 20, 20)])
    assert drawn.mode == "RGB"
    assert drawn.getpixel((30, 25)) == image.convert("RGB").getpixel((30, 25))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_slim_images(size: tuple[int, int]) -> None:
    whole = [0, 0, *size]
    flat = [0, 0, size[0], 0, size[0], size[1], 0, size[1]]
    for region in (Box(*whole), Mask([flat]), Contour([flat]), Point(0.5, 0.5), Ellipse(*whole)):
        assert draw(Image.new("RGB", size), [region]).size == size


def test_a_mark_without_a_visible_pixel_is_an_error() -> None:
    image = Image.new("RGB", (100, 80))
    for region in (
        Ellipse(-200, -200, 300, 300, id="e"),
        Triangle([(-400, -400), (500, -400), (50, 900)], id="e"),
        Scribble([(-5, 20), (-5, -5), (20, -5)], id="e", width=1),
        Scribble([(0, 80), (9, 80)], id="e", width=1),  # along the far border, on no pixel
    ):
        with pytest.raises(RegionError, match=r"region 'e' .* nothing would be seen"):
            draw(image, [region])


@given(data=st.data())
@settings(max_examples=150)
def test_any_region_is_drawn_or_refused_with_a_reason(
    any_region: Regions, noise: Noise, data: st.DataObject
) -> None:
    image = noise(60, 40)
    region = data.draw(any_region(60, 40, inside=False))
    try:
        drawn = draw(image, [region])
    except RegionError as error:
        assert "side" in str(error)
        return
    assert drawn.size == image.size


HUGE = 1e6
DICE = random.Random(0)


@pytest.mark.parametrize(
    "region",
    [
        Ellipse(-HUGE, -HUGE, HUGE, 100), Ellipse(-HUGE, -HUGE, HUGE, HUGE), Point(50, 50, radius=(1e5, 3)),
        Point(50, 50, radius=1e5), Triangle([(-HUGE, 40), (HUGE, 40), (50, HUGE)]), Arrow((-HUGE, -HUGE), (50, 40)),
        Arrow((10, 10), (50, 40), head=1e5), Box(-HUGE, -HUGE, HUGE, HUGE, width=1000),
        Scribble([(DICE.uniform(-HUGE, HUGE), DICE.uniform(-HUGE, HUGE)) for _ in range(10_000)]),
        Scribble([(DICE.uniform(0, 600), DICE.uniform(0, 600)) for _ in range(10_000)], width=300),
        Contour([[-HUGE, -HUGE, HUGE, -HUGE, HUGE, HUGE]], width=1000), Mask([[-HUGE, 40, HUGE, 40, 0, HUGE]]),
    ],
    ids=lambda region: region.shape,
)  # fmt: skip
def test_huge_geometry_is_drawn_in_time(region: Region) -> None:
    image = Image.new("RGB", (640, 480))
    start = time.perf_counter()
    try:
        draw(image, [region])
    except RegionError as error:
        assert "nothing would be seen" in str(error)
    assert time.perf_counter() - start < 5


def test_a_huge_ellipse_is_in_the_right_place() -> None:
    pixels = on_black(Ellipse(50, -50_000, 150_000, 50_080, width=3))  # its left end is at (50, 40)
    assert pixels[40, 51]
    assert pixels[40].sum() == 3
    assert not pixels[:, :50].any()
