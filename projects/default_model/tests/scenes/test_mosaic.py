"""Mosaics: every box holds its tile, and no two tiles overlap."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from default_model.scenes.mosaic import mosaic
from default_model.scenes.scene import overlap


@given(seed=st.integers(0, 10_000), shape=st.tuples(st.integers(4, 90), st.integers(4, 90)))
@settings(max_examples=30, deadline=None)
def test_each_box_holds_its_tile(seed: int, shape: tuple[int, int]) -> None:
    made: list[tuple[int, int, int]] = []

    def tile() -> tuple[Image.Image, str]:
        color = (250 - 10 * len(made), 5 + 10 * len(made), 130)
        made.append(color)
        return Image.new("RGB", shape, color), f"thing {len(made) - 1}"

    image, things = mosaic(tile, np.random.default_rng(seed), side=120)
    assert image.size == (120, 120) and len(things) == len(made) and 4 <= len(things) <= 16
    pixels = np.asarray(image)
    for number, thing in enumerate(things):
        assert thing.label == f"thing {number}"
        x1, y1, x2, y2 = (int(v) for v in thing.box)
        assert 0 <= x1 < x2 <= 120 and 0 <= y1 < y2 <= 120
        assert (pixels[y1:y2, x1:x2] == made[number]).all()
    for i, one in enumerate(things):
        assert all(overlap(one.box, other.box) == 0 for other in things[:i])
        width, height = one.box[2] - one.box[0], one.box[3] - one.box[1]
        assert width / height < 2.6 and height / width < 2.6
