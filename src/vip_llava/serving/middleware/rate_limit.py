"""A token bucket for each client, and one byte budget for all request bodies.

Both belong to one event loop and never block. They do not know what a request is.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["ByteBudget", "RateLimiter"]

_MAX_CLIENTS = 10_000


class RateLimiter:
    """A token bucket for each client: refilled by `per_minute`, holding at most `burst`."""

    def __init__(
        self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """per_minute: 0 turns the limit off."""
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        # client -> (tokens left, time of that count), least recently seen first
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Count a request; 0 if it is allowed, else the seconds until the next one is."""
        if not self._per_second:
            return 0.0
        now = self._clock()
        left, seen = self._buckets.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - seen) * self._per_second)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        # Bounded in memory; the least recently seen client has a full bucket anyway.
        while len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_second


class ByteBudget:
    """Bytes that all requests together may hold."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.used = 0

    def take(self, count: int) -> bool:
        """Reserve bytes; False if fewer are left."""
        if self.used + count > self._size:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """Release reserved bytes."""
        self.used -= count
