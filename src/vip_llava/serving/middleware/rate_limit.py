"""How much clients may ask: a bucket of requests each, and a budget of bytes for all.

Both are used by one event loop only and never wait. Neither knows what a request is.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["ByteBudget", "Rates"]

_MOST_CLIENTS = 10_000


class Rates:
    """A bucket of requests for each client; it fills by `per_minute` and holds `burst`."""

    def __init__(
        self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`per_minute` 0: nobody is limited."""
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        # client -> (requests left, when that was so), the longest unseen first
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Count a request; 0 where it is allowed, else the seconds until the next one is."""
        if not self._per_second:
            return 0.0
        now = self._clock()
        left, seen = self._buckets.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - seen) * self._per_second)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        # Many addresses must not fill the memory; who was not seen for longest has a full bucket.
        while len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_second


class ByteBudget:
    """Bytes that all requests together may hold."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.used = 0

    def take(self, count: int) -> bool:
        """Reserve so many bytes; False where they are not there."""
        if self.used + count > self._size:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """Return bytes that were taken."""
        self.used -= count
