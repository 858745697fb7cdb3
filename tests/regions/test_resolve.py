"""Resolving completes ids, colours, styles and pixels, and clips or refuses what lies outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.errors import RegionError
from vip_llava.regions import (
    PALETTE,
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
    resolve,
)

SIZE = (336, 200)
BOX = Box(10, 10, 50, 50)


def test_ids_fill_the_gaps() -> None:
    given_ids = [None, "2", None, "dog"]
    done = resolve([BOX.changed(id=each) for each in given_ids], SIZE).regions
    assert [region.id for region in done] == ["1", "2", "3", "dog"]


def test_equal_ids_are_refused() -> None:
    with pytest.raises(RegionError, match="two regions have the id 'a'"):
        resolve([BOX.changed(id="a"), BOX.changed(id="b"), BOX.changed(id="a")], SIZE)


def test_colours_come_in_palette_order_and_skip_taken_ones() -> None:
    first = resolve([BOX, BOX, BOX], SIZE).regions
    assert [region.color for region in first] == ["red", "lime", "blue"]
    skipping = resolve(
        [BOX, Box(1, 1, 9, 9, color="#ff0000"), BOX, Box(1, 1, 9, 9, color="blue")], SIZE
    )
    assert [region.color for region in skipping.regions] == ["lime", "red", "yellow", "blue"]
    assert resolve([Box(1, 1, 9, 9, color=(1, 2, 3))], SIZE).regions[0].color == "#010203"


def test_more_regions_than_names_repeat_colours_with_a_note() -> None:
    done = resolve([BOX] * 20, SIZE)
    assert [region.color for region in done.regions[:9]] == list(PALETTE)
    assert done.regions[9].color == "red"
    assert any("colours repeat" in note for note in done.notes)
    assert not resolve([BOX] * 9, SIZE).notes


@pytest.mark.parametrize(("size", "line", "contour", "radius"), [((336, 200), 3, 1, 8), ((300, 672), 6, 2, 16), ((64, 40), 1, 1, 1)])  # fmt: skip
def test_defaults_scale_with_the_longer_side(
    size: tuple[int, int], line: int, contour: int, radius: int
) -> None:
    square = [5, 5, 30, 5, 30, 30]
    regions = [
        Box(5, 5, 30, 30), Ellipse(5, 5, 30, 30), Triangle([(5, 5), (30, 5), (9, 30)]), Scribble([(5, 5), (9, 9)]),
        Arrow((5, 5), (30, 30)), Contour([square]), Mask([square]), Point(9, 9),
    ]  # fmt: skip
    done = resolve(regions, size).regions
    assert [region.width for region in done] == [line] * 5 + [contour, None, None]
    assert [region.alpha for region in done] == [255] * 6 + [128, 255]
    assert isinstance(done[-1], Point)
    assert done[-1].radius == radius
    assert isinstance(done[4], Arrow)
    assert done[4].head is not None


def test_given_styles_are_kept() -> None:
    done = resolve([Box(5, 5, 30, 30, color="gold", alpha=7, width=9, id="x")], SIZE).regions[0]
    assert done == Box(5, 5, 30, 30, color="gold", alpha=7, width=9, id="x")


def test_unit_regions_become_pixels() -> None:
    done = resolve(
        [Box(0.5, 0.25, 1, 1, frame="unit"), Point(0.5, 0.5, frame="unit")], SIZE
    ).regions
    assert done[0].extent(SIZE) == (168, 50, 336, 200)
    assert isinstance(done[1], Point)
    assert (done[1].frame, done[1].radius) == ("pixel", 8)


def test_box_contour_and_mask_are_cut_off_and_it_is_reported() -> None:
    ring = [-20, -10, 60, -10, 60, 50, -20, 50]
    done = resolve([Box(-20, -10, 60, 50, id="b"), Contour([ring]), Mask([ring])], SIZE)
    assert [region.extent(SIZE) for region in done.regions] == [(0, 0, 60, 50)] * 3
    assert len(done.notes) == 3
    assert "region 'b' (box)" in done.notes[0]
    assert "cut off" in done.notes[0]
    assert "(-20, -10) to (60, 50)" in done.notes[0]


def test_other_shapes_keep_their_form_and_it_is_reported() -> None:
    regions = [
        Ellipse(-20, -10, 60, 50), Triangle([(-20, 5), (60, 5), (9, 300)]), Scribble([(-20, 5), (60, 50)]),
        Point(2, 2, radius=5), Arrow((-50, 5), (60, 50)),
    ]  # fmt: skip
    done = resolve(regions, SIZE)
    for before, after in zip(regions, done.regions, strict=True):
        assert after.extent(SIZE) == before.extent(SIZE)
    assert len(done.notes) == 5
    assert all("not drawn" in note for note in done.notes)


def test_polygon_parts_outside_are_removed() -> None:
    inside, outside = [10, 10, 50, 10, 50, 50], [400, 10, 500, 10, 500, 50]
    done = resolve([Mask([inside, outside])], SIZE)
    assert done.regions[0].to_json()["polygons"] == [inside]
    assert done.notes


@pytest.mark.parametrize(
    "region",
    [
        Box(-50, 10, 0, 50), Box(336, 10, 400, 50), Ellipse(10, 200, 50, 300), Point(-9, 9, radius=4),
        Triangle([(400, 10), (500, 10), (400, 90)]), Scribble([(-5, -5), (-9, 40)]), Arrow((-5, 5), (-2, 5)),
        Arrow((50, 50), (-2, 5)), Contour([[400, 10, 500, 10, 500, 50]]),
        Mask([[-100, 300, 600, 250, 600, 400]]), Mask([[-40, 150, 30, 260, -40, 260]]),
    ],
)  # fmt: skip
def test_outside_is_refused_by_name(region: Region) -> None:
    with pytest.raises(RegionError, match=rf"region 'r' \({region.shape}\): .*(outside|inside)"):
        resolve([region.changed(id="r")], SIZE)


def test_an_rle_of_another_size() -> None:
    mask = Mask(rle={"size": [2, 3], "counts": "231"}, id="m")  # type: ignore[arg-type]
    with pytest.raises(
        RegionError, match=r"region 'm' \(mask\): its rle is for an image of 3 x 2 .* 336 x 200"
    ):
        resolve([mask], SIZE)
    assert resolve([mask], (3, 2)).regions[0].extent((3, 2)) == (1, 0, 3, 2)


def test_limits_and_wrong_types() -> None:
    with pytest.raises(RegionError, match="limit is 1000"):
        resolve([BOX] * 1001, SIZE)
    with pytest.raises(RegionError, match="not dict"):
        resolve([{"shape": "box"}], SIZE)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="size"):
        resolve([BOX], (0, 5))
    assert resolve([], SIZE).regions == ()


def test_invisible_is_reported() -> None:
    assert "invisible" in resolve([Box(1, 1, 9, 9, alpha=0)], SIZE).notes[0]


@given(data=st.data())
def test_resolving_again_changes_nothing(
    any_region: Callable[..., st.SearchStrategy[Region]], data: st.DataObject
) -> None:
    regions = data.draw(st.lists(any_region(60, 40, inside=False), max_size=5))
    try:
        once = resolve(regions, (60, 40))
    except RegionError as error:
        assert "side" in str(error)  # outside, or nothing inside
        return
    assert resolve(once.regions, (60, 40)).regions == once.regions
    for region in once.regions:
        assert region.frame == "pixel"
        assert None not in (region.id, region.color, region.alpha)
        region.bounds((60, 40))
