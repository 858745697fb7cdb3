"""Confidence intervals of scores, all at 95 %, without chance: the same rows give the same interval.

It deliberately does not know what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["Interval", "bootstrap", "mean", "share"]

Interval = tuple[float | None, float | None, float | None]
"""Value, low end, high end; None where nothing was counted."""

_Z = 1.959963984540054
_ROUNDS = 1000


def share(hits: int, count: int) -> Interval:
    """A share of independent questions, with Wilson's interval (E. B. Wilson, JASA 1927).

    It stays inside 0..1 and is sensible for few questions and for shares of 0 and 1.
    """
    if not count:
        return None, None, None
    value = hits / count
    middle = (hits + _Z**2 / 2) / (count + _Z**2)
    half = _Z / (count + _Z**2) * math.sqrt(hits * (count - hits) / count + _Z**2 / 4)
    return value, max(0.0, middle - half), min(1.0, middle + half)


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """A mean, with the bootstrap's percentile interval.

    clusters: what values belong together (the image of each); whole clusters are drawn, since
    questions about one image are not independent.
    """
    if not values:
        return None, None, None
    places = range(len(values)) if clusters is None else clusters
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(place, len(numbers)) for place in places])
    sums = np.bincount(index, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(index).astype(float)
    drawn = _draws(len(numbers))
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(np.mean(values)), float(low), float(high)


def bootstrap(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean of the differences ours - theirs on the same questions, with its interval."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values beside {len(theirs)}: the questions must be the same")
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])


def _draws(count: int) -> np.ndarray:
    """How often each of `count` clusters is drawn, [rounds, count]; memory stays bounded."""
    rounds = max(100, min(_ROUNDS, 5_000_000 // count))
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=rounds).astype(float)
