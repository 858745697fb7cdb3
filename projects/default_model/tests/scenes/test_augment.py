"""Random views: boxes follow the image, chosen objects stay whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from default_model.scenes.augment import AugmentSettings, augment
from vip_llava.evaluation.coco_annotations import LabelledObject, Rectangle

SIZE = (240, 180)
PLAIN = AugmentSettings(light=(1.0, 1.0), saturation=(1.0, 1.0), scale=(0.8, 1.0))


def photo_with(box: Rectangle, size: tuple[int, int] = SIZE) -> Image.Image:
    """A black photo with a red rectangle whose left half is blue, so that a flip can be seen."""
    image = Image.new("RGB", size)
    x1, y1, x2, y2 = (int(v) for v in box)
    pen = ImageDraw.Draw(image)
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=(255, 0, 0))
    pen.rectangle((x1, y1, (x1 + x2) // 2 - 1, y2 - 1), fill=(0, 0, 255))
    return image


def seen_box(view: Image.Image) -> Rectangle:
    """The box of what is red or blue in a view."""
    pixels = np.asarray(view).astype(int)
    lit = (pixels[..., 0] + pixels[..., 2] > 128) & (pixels[..., 1] < 60)
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@st.composite
def boxes(draw: st.DrawFn) -> Rectangle:
    x1, y1 = draw(st.integers(0, SIZE[0] - 30)), draw(st.integers(0, SIZE[1] - 30))
    x2, y2 = draw(st.integers(x1 + 24, SIZE[0])), draw(st.integers(y1 + 24, SIZE[1]))
    return float(x1), float(y1), float(x2), float(y2)


@given(box=boxes(), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_box_follows_the_image(box: Rectangle, seed: int) -> None:
    thing = LabelledObject("cat", box)
    view, [moved] = augment(photo_with(box), [thing], [0], np.random.default_rng(seed), PLAIN)
    assert moved is not None
    assert np.abs(np.subtract(moved.box, seen_box(view))).max() <= 2.5


@given(box=boxes(), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_chosen_objects_stay_whole(box: Rectangle, seed: int) -> None:
    """A kept object keeps its whole area, in the scale of the view."""
    x1, y1, x2, y2 = box
    outline = (x1, y1, x2, y1, x2, y2, x1, y2)
    rng = np.random.default_rng(seed)
    view, [moved] = augment(
        photo_with(box), [LabelledObject("cat", box, (outline,))], [0], rng, PLAIN
    )
    assert moved is not None and moved.polygons is not None
    xs, ys = moved.polygons[0][::2], moved.polygons[0][1::2]
    # A box that is clipped at the view's edge would be smaller than its own outline.
    assert moved.box == pytest.approx((min(xs), min(ys), max(xs), max(ys)), abs=1e-6)
    assert min(moved.box) >= 0 and moved.box[2] <= view.width and moved.box[3] <= view.height


def test_flips_mirror_image_and_box_together() -> None:
    box = (20.0, 30.0, 100.0, 110.0)
    sides = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        view, [moved] = augment(photo_with(box), [LabelledObject("cat", box)], [0], rng, PLAIN)
        assert moved is not None
        x1, y1, x2, y2 = moved.box
        left = view.getpixel((int(x1 + (x2 - x1) * 0.25), int((y1 + y2) / 2)))
        assert isinstance(left, tuple)
        sides.add("as it was" if left[2] > left[0] else "mirrored")
    assert sides == {"as it was", "mirrored"}


def test_objects_that_are_mostly_outside_are_dropped() -> None:
    """An object in the corner, cut by windows that keep another one, is mostly there or dropped."""
    corner, kept = (0.0, 0.0, 40.0, 40.0), (150.0, 100.0, 230.0, 170.0)
    things = [LabelledObject("cup", corner), LabelledObject("cat", kept)]
    close = AugmentSettings(smallest_window=0.4, zoom_out_share=0.0, aspect=0.0, scale=(1.0, 1.0))
    lost = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        _, [cup, cat] = augment(photo_with(corner), things, [1], rng, close)
        assert cat is not None
        lost += cup is None
        if cup is not None:
            x1, y1, x2, y2 = cup.box
            assert (x2 - x1) * (y2 - y1) >= 0.5 * 40 * 40 * 0.95
    assert 5 < lost < 40


def test_zooming_out_shows_the_fill_beside_the_photo() -> None:
    far = AugmentSettings(
        zoom_out=1.5, zoom_out_share=1.0, light=(1.0, 1.0), saturation=(1.0, 1.0), fill=(9, 99, 9)
    )
    box = (20.0, 20.0, 220.0, 160.0)
    rng = np.random.default_rng(1)
    view, [moved] = augment(photo_with(box), [LabelledObject("cat", box)], [0], rng, far)
    assert moved is not None
    corners = {view.getpixel((x, y)) for x in (0, view.width - 1) for y in (0, view.height - 1)}
    assert (9, 99, 9) in corners
    assert np.abs(np.subtract(moved.box, seen_box(view))).max() <= 2.5


def test_the_view_is_bounded_and_repeatable() -> None:
    image = photo_with((10.0, 10.0, 90.0, 90.0), (1200, 300))
    small = AugmentSettings(longest=100)
    first, _ = augment(image, [], [], np.random.default_rng(5), small)
    again, _ = augment(image, [], [], np.random.default_rng(5), small)
    other, _ = augment(image, [], [], np.random.default_rng(6), small)
    assert max(first.size) <= 101 and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("seed", range(8))
def test_harsh_views_differ_in_pixels_alone(seed: int) -> None:
    photo = photo_with((60.0, 40.0, 160.0, 120.0)).resize((600, 450))
    things = [LabelledObject("cup", (150.0, 100.0, 400.0, 300.0))]
    kind, harsh = PLAIN, replace(PLAIN, harsh_share=1.0)
    view, moved = augment(photo, things, [0], np.random.default_rng(seed), kind)
    other, same = augment(photo, things, [0], np.random.default_rng(seed), harsh)
    again, _ = augment(photo, things, [0], np.random.default_rng(seed), harsh)
    assert moved == same and (other.size, other.mode) == (view.size, "RGB")
    assert other.tobytes() == again.tobytes()


def test_the_fraction_of_harsh_views() -> None:
    photo = photo_with((60.0, 40.0, 160.0, 120.0))
    things = [LabelledObject("cup", (60.0, 40.0, 160.0, 120.0))]
    half = replace(PLAIN, harsh_share=0.5)
    changed = 0
    for seed in range(200):
        pairs = (np.random.default_rng(seed) for _ in range(2))
        views = [
            augment(photo, things, [0], rng, s)[0]
            for rng, s in zip(pairs, (PLAIN, half), strict=True)
        ]
        changed += views[0].tobytes() != views[1].tobytes()
    # About one in seven harsh views has no change, by chance.
    assert 60 < changed < 115
