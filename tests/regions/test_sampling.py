"""Random marks: repeatable, on their target, always drawable, with the shares of each source."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vip_llava.errors import RegionError
from vip_llava.regions import draw, region_from_json
from vip_llava.regions.colors import PALETTE
from vip_llava.regions.phrases import phrase
from vip_llava.regions.sampling import (
    POLICIES,
    Policy,
    VisualPrompt,
    find_policy,
    generator,
    sample_region,
    sample_visual_prompts,
)
from vip_llava.regions.sampling.targets import inside, point_in_rings
from vip_llava.regions.shapes import (
    SHAPES,
    Arrow,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
)

SIZE = (400, 300)
BOX = (100, 80, 220, 200)
DIAMOND = [160.0, 80, 220, 140, 160, 200, 100, 140]


def sample(shape: str, seed: int = 0, box: Any = BOX, polygons: Any = None, **given: Any) -> Region:
    return sample_region(box, polygons, size=SIZE, rng=random.Random(seed), shape=shape, **given)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("polygons", [None, [DIAMOND]])
def test_a_seed_gives_one_region_and_json_keeps_all_of_it(shape: str, polygons: Any) -> None:
    region = sample(shape, 3, polygons=polygons, color="red", id="7")
    assert region == sample(shape, 3, polygons=polygons, color="red", id="7")
    others = [sample(shape, seed, polygons=polygons, color="red", id="7") for seed in range(4, 9)]
    assert any(region != other for other in others)
    assert region.shape == shape
    assert region.id == "7"
    again = region_from_json(json.loads(json.dumps(region.to_json())))
    blank = Image.new("RGB", SIZE)
    assert draw(blank, [again]).tobytes() == draw(blank, [region]).tobytes()


def test_any_shape_is_drawn_when_none_is_given() -> None:
    rng = random.Random(0)
    seen = {sample_region(BOX, size=SIZE, rng=rng).shape for _ in range(100)}
    assert seen == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_given_is_kept(shape: str) -> None:
    region = sample(shape, color=(1, 2, 3), alpha=17, width=5)
    assert (region.color, region.alpha, region.width) == ("#010203", 17, 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_opacity_and_width_stay_in_the_trained_ranges(shape: str) -> None:
    regions = [sample(shape, seed) for seed in range(300)]
    alphas = {region.alpha for region in regions}
    low, high = (48, 128) if shape == "mask" else (96, 255)
    assert min(alphas) < low + 9
    assert max(alphas) > high - 9
    assert alphas <= set(range(low, high + 1))
    limits = {"box": (2, 8), "ellipse": (2, 8), "triangle": (2, 8), "scribble": (2, 12)}
    limits |= {"arrow": (1, 6), "contour": (1, 2)}
    if shape in limits:
        few, many = (int(limit * 400 / 336) for limit in limits[shape])
        assert {region.width for region in regions} == set(range(few, many + 1))


def test_constant_style_fixes_box_width_and_point_radius() -> None:
    assert {sample("box", seed, style="constant").width for seed in range(20)} == {3}
    points = [sample("point", seed, style="constant") for seed in range(20)]
    assert {point.radius for point in points if isinstance(point, Point)} == {9}
    assert len({sample("ellipse", seed, style="constant").width for seed in range(50)}) > 3


def test_half_of_the_free_points_are_ovals() -> None:
    points = [sample("point", seed) for seed in range(400)]
    ovals = [p for p in points if isinstance(p, Point) and isinstance(p.radius, tuple)]
    assert 150 < len(ovals) < 250
    for oval in ovals:
        across, down = oval.radii
        assert 0.5 <= math.sqrt(across / down) <= 2.0


def test_marks_stay_on_the_outline() -> None:
    ring = tuple(zip(DIAMOND[::2], DIAMOND[1::2], strict=True))
    for seed in range(100):
        point = sample("point", seed, polygons=[DIAMOND])
        triangle = sample("triangle", seed, polygons=[DIAMOND])
        scribble = sample("scribble", seed, polygons=[DIAMOND])
        assert isinstance(point, Point)
        assert isinstance(triangle, Triangle)
        assert isinstance(scribble, Scribble)
        assert inside(ring, point.x, point.y)
        assert all(inside(ring, x, y) for x, y in triangle.points)
        assert inside(ring, *scribble.points[0])
        assert inside(ring, *scribble.points[-1])


def test_a_point_without_outline_lies_near_the_middle_of_the_box() -> None:
    points = [sample("point", seed) for seed in range(200)]
    for point in points:
        assert isinstance(point, Point)
        assert abs(point.x - 160) < 20
        assert abs(point.y - 140) < 20
    assert len({round(point.x) for point in points if isinstance(point, Point)}) > 5


def test_an_area_without_usable_outline_is_the_box() -> None:
    for polygons in (
        None,
        [],
        [[1, 2, 3, 4]],
        [[5, 5, 5, 9, 5, 20]],
        [[900, 900, 950, 900, 950, 950]],
    ):
        mask = sample("mask", polygons=polygons)
        assert isinstance(mask, Mask)
        assert mask.bounds(SIZE) == BOX
        assert isinstance(sample("contour", polygons=polygons), Contour)


def test_an_outline_that_crosses_itself_is_repaired() -> None:
    bow = [100, 80, 220, 200, 220, 80, 100, 200]
    mask = sample("mask", polygons=[bow])
    assert isinstance(mask, Mask)
    assert mask.polygons is not None
    assert len(mask.polygons) == 2


def test_triangles_are_never_flat() -> None:
    for seed in range(300):
        triangle = sample("triangle", seed)
        assert isinstance(triangle, Triangle)
        a, b, c = (math.dist(triangle.points[i], triangle.points[i - 1]) for i in range(3))
        sides = sorted((a, b, c))
        cosine = (sides[0] ** 2 + sides[1] ** 2 - sides[2] ** 2) / (2 * sides[0] * sides[1])
        assert math.degrees(math.acos(cosine)) <= 150.001


@pytest.mark.parametrize("box", [(0, 0, 400, 300), (0, 0, 30, 20), (380, 280, 400, 300), BOX])
def test_arrows_lie_in_the_image_and_point_into_the_box(box: tuple[int, int, int, int]) -> None:
    x1, y1, x2, y2 = box
    angles = set()
    for seed in range(60):
        arrow = sample("arrow", seed, box=box)
        assert isinstance(arrow, Arrow)
        assert x1 <= arrow.tip[0] <= x2
        assert y1 <= arrow.tip[1] <= y2
        assert 0 <= arrow.tail[0] <= 400
        assert 0 <= arrow.tail[1] <= 300
        angles.add(round(math.atan2(arrow.tail[1] - arrow.tip[1], arrow.tail[0] - arrow.tip[0]), 1))
    assert len(angles) > 10


def test_an_ellipse_around_the_whole_image_is_visible() -> None:
    for seed in range(50):
        ellipse = sample("ellipse", seed, box=(0, 0, 400, 300))
        assert isinstance(ellipse, Ellipse)
        assert draw(Image.new("RGB", SIZE), [ellipse.changed(color="red")]).getbbox() is not None


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((1, 2, 3), "four finite"),
        ((1, 2, math.nan, 4), "four finite"),
        ((1, 2, math.inf, 4), "four finite"),
        ((30, 2, 10, 4), "reversed"),
        ((10, 2, 10, 4), "empty"),
        ((500, 2, 600, 4), "outside the image of 400 x 300"),
    ],
)
def test_a_bad_box_is_an_error(box: tuple[float, ...], said: str) -> None:
    with pytest.raises(RegionError, match=said):
        sample("box", box=box)


@pytest.mark.parametrize("polygon", [[1, 2, 3], [1, 2, 3, 4, 5, math.nan]])
def test_a_bad_outline_is_an_error(polygon: list[float]) -> None:
    with pytest.raises(RegionError, match="even count of finite"):
        sample("mask", polygons=[polygon])


def test_unknown_shape_and_style_are_errors() -> None:
    with pytest.raises(RegionError, match=r"'star'.*box, ellipse"):
        sample("star")
    with pytest.raises(RegionError, match=r"'loud'.*constant"):
        sample("box", style="loud")


@st.composite
def boxes(data: st.DrawFn) -> tuple[float, float, float, float]:
    """Any box that an image of 400 x 300 shows a pixel of, also partly outside, tiny and huge."""
    x1 = data(st.floats(-500, 399))
    y1 = data(st.floats(-500, 299))
    return x1, y1, max(x1, 0) + data(st.floats(1, 900)), max(y1, 0) + data(st.floats(1, 900))


OUTLINES = st.none() | st.lists(
    st.lists(st.floats(-50, 450) | st.integers(-5, 400), min_size=1, max_size=9).map(
        lambda v: v + v
    ),
    max_size=3,
)


@given(
    box=boxes(),
    polygons=OUTLINES,
    shape=st.sampled_from(list(SHAPES)),
    style=st.sampled_from(["free", "constant"]),
    seed=st.integers(0, 2**32),
)
def test_every_valid_target_gets_a_visible_mark(
    box: tuple[float, float, float, float], polygons: Any, shape: str, style: Any, seed: int
) -> None:
    region = sample(shape, seed, box=box, polygons=polygons, style=style, color="#ffffff")
    assert draw(Image.new("RGB", SIZE), [region]).getbbox() is not None


def test_points_of_a_sliver_are_inside_it() -> None:
    rng = random.Random(0)
    for thickness in (1e-9, 1e-3, 0.5):
        ring = ((0.0, 0.0), (300.0, 300.0), (300.0, 300.0 + thickness))
        for _ in range(50):
            x, y = point_in_rings([ring], rng)
            assert abs(x - y) <= thickness + 1e-6


def test_points_of_two_rings_fall_in_proportion_to_their_area() -> None:
    small, large = ((0, 0), (1, 0), (1, 1), (0, 1)), ((2, 0), (5, 0), (5, 1), (2, 1))
    rng = random.Random(1)
    right = sum(point_in_rings([small, large], rng)[0] > 1.5 for _ in range(2000))
    assert 1400 < right < 1600


def test_generators_depend_on_the_whole_key() -> None:
    keys: list[tuple[int | str, ...]] = [
        (0, 1, "a"),
        (0, 2, "a"),
        (1, 1, "a"),
        (0, 1, "b"),
        (0, "1", "a"),
    ]
    firsts = [generator(*key).random() for key in keys]
    assert len(set(firsts)) == len(keys)
    assert generator(0, 1, "a").random() == firsts[0]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("refcocog", "refcocog"),
        ("refcocog-12", "refcocog"),
        ("refcocog-gpt4v-12", "refcocog-gpt4v"),
        ("refcocog_gpt4v", "refcocog-gpt4v"),
        ("vg_rel-gpt4v-3", "vg_rel-gpt4v"),
        ("vg_rel-3", "vg_rel"),
        ("pointQA_twice-1", "pointQA_twice"),
        ("v7w-x-y", "v7w"),
    ],
)
def test_policies_are_found_by_row_id(source: str, name: str) -> None:
    assert find_policy(source).name == name


def test_a_prompt_style_overrides_the_source() -> None:
    assert find_policy("vcr-1", "vcr_qa").shapes == ("point",)
    assert find_policy("vcr-1").shapes != ("point",)
    with pytest.raises(RegionError, match=r"'loud'.*vcr_qa"):
        find_policy("vcr-1", "loud")
    with pytest.raises(RegionError, match=r"'coco'.*refcocog"):
        find_policy("coco")


@given(st.sampled_from(list(POLICIES.values())), st.integers(1, 9), st.integers(0, 2**32))
def test_objects_of_one_image_have_distinct_prompts(rule: Policy, count: int, seed: int) -> None:
    prompts = sample_visual_prompts(rule, count, random.Random(seed))
    assert len(prompts) == count
    assert {prompt.shape for prompt in prompts} <= set(rule.shapes)
    if rule.color is None:
        assert len(set(prompts)) == count
        for shape, times in Counter(prompt.shape for prompt in prompts).items():
            colors = [prompt.color for prompt in prompts if prompt.shape == shape]
            assert times == 1 or set(colors) <= set(PALETTE)


def test_a_shape_used_once_has_a_named_colour_half_of_the_time() -> None:
    rng = random.Random(5)
    prompts = [sample_visual_prompts(POLICIES["refcocog"], 1, rng)[0] for _ in range(2000)]
    assert 900 < sum(isinstance(prompt.color, str) for prompt in prompts) < 1100


def test_a_fixed_colour_and_more_objects_than_names() -> None:
    rng = random.Random(0)
    assert sample_visual_prompts(POLICIES["pointQA_twice"], 1, rng) == [VisualPrompt("box", "red")]
    many = sample_visual_prompts(POLICIES["v7w"], 12, rng)
    assert Counter(isinstance(prompt.color, str) for prompt in many) == {True: 9, False: 3}


def test_marks_of_one_image_have_different_phrases() -> None:
    rng = random.Random(2)
    boxes = [(10, 10, 60, 60), (100, 10, 160, 60), (200, 10, 260, 60), (10, 100, 60, 160)]
    for rule in POLICIES.values():
        prompts = sample_visual_prompts(rule, 1 if rule.color else 4, rng)
        regions = [
            sample_region(
                box, size=SIZE, rng=rng, shape=prompt.shape, color=prompt.color, id=str(i)
            )
            for i, (box, prompt) in enumerate(zip(boxes, prompts, strict=False))
        ]
        assert len({phrase(region, regions) for region in regions}) == len(prompts)
