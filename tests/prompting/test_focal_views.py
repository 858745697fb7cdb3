"""The close view: where it looks, and what it shows beyond the image's edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vip_llava.prompting.focal_views import (
    FocalSettings,
    centre,
    fine_marks,
    focal_square,
    focal_view,
    view_captions,
    view_remarks,
)
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.turns import MarkedImage
from vip_llava.regions import Arrow, Box, Mask, Point, Region, draw, resolve

SIZE = (200, 120)
FILL = (1, 200, 3)


def test_the_square_is_around_the_region() -> None:
    square = focal_square(Box(80, 40, 140, 60), SIZE, FocalSettings())
    assert square == (110, 50, 1.6 * 60)


def test_small_regions_get_some_surroundings() -> None:
    assert focal_square(Box(80, 40, 90, 50), SIZE, FocalSettings())[2] == 56
    assert focal_square(Box(80, 40, 90, 50), SIZE, FocalSettings(minimum=20))[2] == 20


@pytest.mark.parametrize("region", [Point(100, 60), Arrow(tail=(20, 20), tip=(100, 60))])
def test_what_points_says_nothing_of_the_size(region: Region) -> None:
    settings = FocalSettings(point_share=0.4)
    resolved = resolve([region], SIZE).regions[0]
    x, y, side = focal_square(resolved, SIZE, settings)
    assert abs(x - 100) < 1 and abs(y - 60) < 1
    assert side == pytest.approx(0.4 * 200)


def test_an_arrow_near_the_edge_is_looked_at_around_its_tip() -> None:
    resolved = resolve([Arrow(tail=(60, 60), tip=(4, 7))], SIZE).regions[0]
    assert focal_square(resolved, SIZE, FocalSettings(point_share=0.4)) == (4, 7, 80)


def test_a_mask_counts_by_its_area() -> None:
    region = Mask(polygons=[[10, 10, 90, 10, 90, 40, 10, 40]])
    assert focal_square(region, SIZE, FocalSettings())[:2] == (50, 25)


def test_inside_the_image_the_view_is_a_plain_crop() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (120, 200, 3), dtype=np.uint8))
    view = focal_view(image, (100, 60, 50), 50, FILL)
    assert view.tobytes() == image.crop((75, 35, 125, 85)).tobytes()


def test_outside_the_image_the_view_is_filled() -> None:
    image = Image.new("RGB", SIZE, (90, 90, 90))
    view = np.asarray(focal_view(image, (10, 60, 80), 40, FILL))
    # 30 of 80 pixels lie left of the image: 15 of the view's 40 columns.
    assert (view[:, :15] == FILL).all() and (view[:, 15:] == 90).all()
    beyond = np.asarray(focal_view(image, (-90, -90, 40), 20, FILL))
    assert (beyond == FILL).all()


@given(x=st.integers(3, SIZE[0] - 3), y=st.integers(3, SIZE[1] - 3), side=st.floats(30.0, 400.0))
@settings(max_examples=60, deadline=None)
def test_the_marked_place_stays_in_the_centre(x: int, y: int, side: float) -> None:
    image = Image.new("RGB", SIZE)
    image.paste((255, 0, 0), (x - 3, y - 3, x + 3, y + 3))
    view = np.asarray(focal_view(image, (x, y, side), 96, (0, 0, 0))).astype(float)
    red = view[..., 0]
    rows, columns = np.indices(red.shape)
    middle = ((red * columns).sum() / red.sum(), (red * rows).sum() / red.sum())
    assert np.abs(np.subtract(middle, 47.5)).max() < 1.5


def test_the_processor_shows_a_close_view_of_each_region(lite_processor: Processor) -> None:
    image = Image.new("RGB", SIZE, (127, 127, 127))
    regions = resolve([Box(60, 40, 120, 80, color="red"), Point(2, 2)], SIZE).regions
    drawn = draw(image, regions)
    whole, box, point = lite_processor.views(MarkedImage(drawn, regions, drawn))
    assert whole is drawn and box.size == point.size == (64, 64)
    assert lite_processor.focal is not None
    fill = lite_processor.geometry.fill
    for region, view in zip(regions, (box, point), strict=True):
        square = focal_square(region, SIZE, lite_processor.focal)
        assert view.tobytes() == focal_view(drawn, square, 64, fill).tobytes()
    red = np.asarray(box).astype(int)
    assert ((red[..., 0] > 200) & (red[..., 1] < 60)).any()
    assert point.getpixel((0, 0)) == fill  # a mark in the corner: most of its square is outside


def test_views_are_named_by_their_words_and_places() -> None:
    regions = [
        Box(20, 10, 60, 50, color="red", id="1"),
        Arrow(tail=(100, 20), tip=(150, 50), color="blue", id="2"),
    ]
    assert view_captions(regions, (200, 100), ranked=True) == [
        "within the red rectangle, left 10, top 10, right 30, bottom 50, "
        "1 of 2 from the left, 1 of 2 from the top: ",
        "pointed to by the blue arrow, left 65, top 30, right 85, bottom 70, "
        "2 of 2 from the left, 2 of 2 from the top: ",
    ]
    alone = "within the red rectangle, left 10, top 10, right 30, bottom 50: "
    assert view_captions(regions[:1], (200, 100), ranked=True) == [alone]
    assert view_captions(regions, (200, 100))[0] == alone
    alike = [Box(20, 10, 60, 50, color="red", id=name) for name in "12"]
    captions = view_captions(alike, (200, 100), ranked=True)
    assert all("left 10" in each and "1 of 2 from the left" in each for each in captions)


def test_how_two_lie_is_said_in_the_words_of_questions() -> None:
    red, lime = Box(20, 10, 60, 50, color="red", id="1"), Box(50, 60, 90, 99, color="lime", id="2")
    names = "the object within the red rectangle", "the object within the lime rectangle"
    assert view_remarks([red, lime], (200, 100)) == [
        f"The{names[0][3:]} is to the left of and above {names[1]}.",
        f"The{names[1][3:]} is to the right of and below {names[0]}.",
    ]
    wide = Box(120, 10, 190, 50, color="lime", id="2")  # at the same height
    assert view_remarks([red, wide], (200, 100))[0] == (
        f"The{names[0][3:]} is to the left of and smaller than {names[1]}."
    )
    large = Box(50, 0, 150, 98, color="lime", id="2")
    assert (
        " is to the right of, below and bigger than the" in view_remarks([red, large], (200, 99))[1]
    )
    inside = Box(30, 20, 50, 40, color="lime", id="2")  # one middle
    assert " is bigger than the" in view_remarks([red, inside], (200, 100))[0]
    alike = Box(20, 10, 60, 50, color="lime", id="2")
    assert " is at the place of the" in view_remarks([red, alike], (200, 100))[0]


def test_an_arrow_is_where_it_points_and_has_no_size() -> None:
    box = Box(80, 40, 120, 60, color="red", id="1")
    arrow = Arrow(tail=(10, 10), tip=(110, 70), color="blue", id="2")
    resolved = resolve([box, arrow], SIZE).regions
    assert view_remarks(resolved, SIZE)[1] == (
        "The object pointed to by the blue arrow is to the right of and below the object within the "
        "red rectangle."
    )
    unit = Arrow(tail=(0.1, 0.1), tip=(0.9, 0.2), frame="unit")
    assert centre(unit, (200, 100)) == pytest.approx((180, 20))


def test_of_more_than_two_each_is_counted() -> None:
    places = {"red": (10, 60), "lime": (90, 20), "blue": (50, 40)}
    boxes = [Box(x, y, x + 9, y + 9, color=name, id=name) for name, (x, y) in places.items()]
    assert view_remarks(boxes, SIZE) == [
        "The object within the red rectangle is 1 of 3 from the left and 3 of 3 from the top.",
        "The object within the lime rectangle is 3 of 3 from the left and 1 of 3 from the top.",
        "The object within the blue rectangle is 2 of 3 from the left and 2 of 3 from the top.",
    ]
    assert view_remarks(boxes[:1], SIZE) == [""] and view_remarks([], SIZE) == []


def ink(view: Image.Image) -> float:
    """The share of a view that is the mark's red."""
    pixels = np.asarray(view, np.int16)
    return float(((pixels[..., 0] > 180) & (pixels[..., 1:].max(-1) < 70)).mean())


@pytest.mark.parametrize(
    "region",
    [Box(300, 200, 330, 224), Point(315, 212), Arrow(tail=(280, 190), tip=(315, 212))],
    ids=lambda region: region.shape,
)
def test_a_fine_mark_leaves_a_small_thing_to_be_seen(region: Region) -> None:
    photo = Image.new("RGB", (640, 480), (40, 120, 90))
    before = photo.tobytes()
    resolved = resolve([region.changed(color="red")], photo.size).regions
    square = focal_square(resolved[0], photo.size, FocalSettings())
    coarse = focal_view(draw(photo, resolved), square, 256, FILL)
    fine = focal_view(fine_marks(photo, resolved, square), square, 256, FILL)
    assert photo.tobytes() == before
    assert 0 < ink(fine) < 0.6 * ink(coarse)


def test_the_processor_marks_focal_views_anew() -> None:
    photo = Image.new("RGB", (640, 480), (40, 120, 90))
    resolved = resolve([Box(300, 200, 330, 224, color="red")], photo.size).regions
    drawn = draw(photo, resolved)
    geometry = ImageGeometry(size=64)
    views = {}
    for fine in (True, False):
        processor = object.__new__(Processor)
        processor.focal, processor.geometry = FocalSettings(fine=fine), geometry
        whole, views[fine] = processor.views(MarkedImage(photo, resolved, drawn))
        assert whole is drawn
        # A mark that was drawn by hand is cut out as it is.
        as_drawn = processor.views(MarkedImage(drawn, resolved, drawn))[1]
    assert as_drawn.tobytes() == views[False].tobytes()
    assert ink(views[True]) < ink(views[False])
