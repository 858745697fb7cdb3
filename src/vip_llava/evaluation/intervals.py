"""95 % confidence intervals of scores.

They use no random state: the same values always give the same interval. It does not know what the
values measure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["Interval", "mean", "mean_difference", "proportion"]

Interval = tuple[float | None, float | None, float | None]
"""Value, lower bound, upper bound; None if there was nothing to count."""

_Z = 1.959963984540054
_RESAMPLES = 1000


def proportion(hits: int, count: int) -> Interval:
    """A proportion of independent trials, with Wilson's score interval (JASA 22, 1927).

    It stays within 0..1 and is accurate for few trials and for proportions of 0 and 1.
    """
    if not count:
        return None, None, None
    center = (hits + _Z**2 / 2) / (count + _Z**2)
    half = _Z / (count + _Z**2) * math.sqrt(hits * (count - hits) / count + _Z**2 / 4)
    return hits / count, max(0.0, center - half), min(1.0, center + half)


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """A mean, with the percentile interval of a bootstrap.

    clusters: the cluster of each value, such as its image. Whole clusters are resampled, since
    questions about one image are not independent.
    """
    if not values:
        return None, None, None
    keys = range(len(values)) if clusters is None else clusters
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    sums = np.bincount(index, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(index).astype(float)
    drawn = _resample(len(numbers))
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), (2.5, 97.5))
    return float(np.mean(values)), float(low), float(high)


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean of the paired differences `ours - theirs`, with its bootstrap interval."""
    if len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} values and {len(theirs)}: they must be of the same questions"
        )
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])


def _resample(count: int) -> np.ndarray:
    """How often each of `count` clusters is drawn: [resamples, count], of bounded size."""
    rounds = max(100, min(_RESAMPLES, 5_000_000 // count))
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=rounds).astype(float)
