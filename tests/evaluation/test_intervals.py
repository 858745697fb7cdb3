"""Intervals: published values and properties."""

from __future__ import annotations

import random

import pytest

from vip_llava.evaluation.intervals import mean, mean_difference, proportion


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson's score).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(hits: int, count: int, low: float, high: float) -> None:
    value, lower, upper = proportion(hits, count)
    assert value == hits / count
    assert (lower, upper) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_no_values_have_no_interval() -> None:
    assert proportion(0, 0) == (None, None, None) == mean([])


def test_a_mean_of_shares_is_about_wilsons() -> None:
    values = [1.0] * 300 + [0.0] * 200
    value, low, high = mean(values)
    _, wilson_low, wilson_high = proportion(300, 500)
    assert value == 0.6 and low is not None and high is not None
    assert low == pytest.approx(wilson_low, abs=0.01)
    assert high == pytest.approx(wilson_high, abs=0.01)
    assert mean(values) == (value, low, high)  # the same every time


def test_questions_about_one_image_are_not_independent() -> None:
    dice = random.Random(0)
    values, images = [], []
    for image in range(40):
        hit = float(dice.random() < 0.5)
        values += [hit] * 10
        images += [image] * 10
    _, low, high = mean(values)
    _, wide_low, wide_high = mean(values, images)
    assert None not in (low, high, wide_low, wide_high)
    assert (wide_high or 0) - (wide_low or 0) > 2.5 * ((high or 0) - (low or 0))


def test_differences_are_paired() -> None:
    ours = [1.0, 0.0] * 50
    theirs = [0.0, 0.0] * 50
    value, low, high = mean_difference(ours, theirs)
    assert value == 0.5 and low is not None and high is not None and 0.35 < low < 0.5 < high < 0.65
    assert mean_difference(ours, ours) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same"):
        mean_difference(ours, theirs[:3])
