"""Marks are on their objects, have different colours and can be drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from default_model.scenes.marking import SHAPES, mark
from vip_llava.evaluation.coco_annotations import LabelledObject, Rectangle
from vip_llava.regions import PALETTE, Arrow, Contour, Mask, Point, color_name, draw, resolve

SIZE = (200, 150)
BOX = (60.0, 40.0, 130.0, 110.0)
OUTLINE = (60.0, 40.0, 130.0, 40.0, 130.0, 110.0, 60.0, 110.0)


def grown(box: Rectangle, by: float) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def only(shape: str) -> dict[str, float]:
    """Weights that leave no other shape."""
    return {name: float(name == shape) for name in SHAPES}


@pytest.mark.parametrize("polygons", [None, (OUTLINE,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mark_points_at_its_object(
    shape: str, polygons: tuple[tuple[float, ...], ...] | None
) -> None:
    thing = LabelledObject("cat", BOX, polygons)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        [region] = mark([thing], SIZE, rng, only(shape), jitter=0.0)
        assert region.shape == shape and region.id == "1"
        x1, y1, x2, y2 = region.bounds(SIZE)
        middle = ((x1 + x2) / 2, (y1 + y2) / 2)
        if isinstance(region, Arrow):
            middle = region.tip
        left, top, right, bottom = grown(BOX, 6)
        assert left <= middle[0] <= right and top <= middle[1] <= bottom
        if shape == "box":
            assert np.allclose((x1, y1, x2, y2), BOX, atol=1)
        if shape in ("ellipse", "contour", "mask"):
            width, height = min(x2, BOX[2]) - max(x1, BOX[0]), min(y2, BOX[3]) - max(y1, BOX[1])
            assert width * height >= 0.7 * 70 * 70  # it covers most of the object


def test_jitter_moves_edges_a_little_and_stays_in_the_image() -> None:
    moved = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        [region] = mark([LabelledObject("cat", (0.0, 0.0, 80.0, 150.0))], SIZE, rng, only("box"))
        bounds = region.bounds(SIZE)
        assert min(bounds) >= 0 and bounds[2] <= SIZE[0] and bounds[3] <= SIZE[1]
        assert abs(bounds[2] - 80) <= 0.12 * 80 + 1
        moved.append(bounds[2])
    assert len({round(edge, 2) for edge in moved}) > 20


def test_several_marks_have_different_named_colours() -> None:
    things = [LabelledObject(str(i), (i * 20.0, 10.0, i * 20.0 + 18, 90.0)) for i in range(9)]
    for seed in range(20):
        regions = mark(things, SIZE, np.random.default_rng(seed))
        names = [color_name(region.color) for region in regions if region.color is not None]
        assert sorted(filter(None, names)) == sorted(PALETTE)
        assert [region.id for region in regions] == [str(i) for i in range(1, 10)]


def test_all_shapes_and_both_styles_occur() -> None:
    shapes: Counter[str] = Counter()
    widths = set()
    for seed in range(200):
        [region] = mark([LabelledObject("cat", BOX, (OUTLINE,))], SIZE, np.random.default_rng(seed))
        shapes[region.shape] += 1
        if region.shape == "box":
            widths.add(region.width)
        if isinstance(region, Mask | Contour):
            default = resolve([region.changed(alpha=None, color=None)], SIZE).regions[0].alpha
            assert region.alpha is not None and (region.alpha <= 150 or region.alpha == default)
    assert set(shapes) == set(SHAPES) and min(shapes.values()) > 10
    assert len(widths) > 2


def test_marks_are_resolved_repeatable_and_visible() -> None:
    things = [LabelledObject("cat", BOX, (OUTLINE,)), LabelledObject("cup", (2.0, 2.0, 12.0, 12.0))]
    ground = Image.new("RGB", SIZE, (90, 90, 90))
    for seed in range(30):
        regions = mark(things, SIZE, np.random.default_rng(seed))
        assert regions == mark(things, SIZE, np.random.default_rng(seed))
        assert resolve(regions, SIZE).regions == regions
        assert draw(ground, regions).tobytes() != ground.tobytes()
        assert all(isinstance(r, Point) or r.width is None or r.width > 0 for r in regions)


def test_weights_are_relative_frequencies() -> None:
    rng = np.random.default_rng(1)
    thing = LabelledObject("cat", (20.0, 30.0, 120.0, 130.0))
    weights = {"arrow": 3.0, "point": 0.0}
    shapes = [mark([thing], SIZE, rng, weights)[0].shape for _ in range(600)]
    # 3 of 9 arrows; standard deviation about 12.
    assert 150 < shapes.count("arrow") < 250 and shapes.count("point") == 0
    assert set(shapes) == set(SHAPES) - {"point"}
