"""Overlap of boxes, and objects at the same place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from default_model.scenes.scene import Scene, overlap

numbers = st.integers(0, 50)
boxes = st.tuples(numbers, numbers, st.integers(1, 50), st.integers(1, 50)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)


def test_overlap_of_known_boxes() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert overlap((0, 0, 10, 10), (30, 30, 40, 40)) == 0


@given(a=boxes, b=boxes)
def test_overlap_is_symmetric_and_a_share(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> None:
    assert overlap(a, b) == overlap(b, a)
    assert 0 <= overlap(a, b) <= 1
    assert overlap(a, a) == 1


def test_shares_lists_objects_at_the_same_place(make_scene: Callable[..., Scene]) -> None:
    things = [
        ("person", (10.0, 10.0, 60.0, 100.0)),
        ("coat", (11.0, 12.0, 60.0, 98.0)),
        ("hat", (20.0, 10.0, 40.0, 20.0)),
    ]
    assert make_scene(things, 1).shares(0) == ["coat"]
