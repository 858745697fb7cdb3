"""Which of several workers gets the next request: lottery or shortest queue, as in the original.

Pure functions of what is known of the workers; they know nothing of the network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeVar

__all__ = ["DISPATCH", "Dispatch", "Loaded", "lottery", "shortest_queue"]


class Loaded(Protocol):
    """What is needed of a worker to choose."""

    @property
    def speed(self) -> float: ...

    @property
    def load(self) -> int: ...

    @property
    def last_chosen(self) -> int: ...


Worker = TypeVar("Worker", bound=Loaded)
Dispatch = Callable[[Sequence[Worker], random.Random], Worker]


def lottery(workers: Sequence[Worker], chance: random.Random) -> Worker:
    """One by chance, as often as its speed is of all speeds. At least one worker is there."""
    return chance.choices(workers, [worker.speed for worker in workers])[0]


def shortest_queue(workers: Sequence[Worker], chance: random.Random) -> Worker:
    """The one with the fewest requests for its speed; among equals the longest unchosen one."""
    return min(workers, key=lambda worker: (worker.load / worker.speed, worker.last_chosen))


DISPATCH: Mapping[str, Dispatch[Loaded]] = MappingProxyType(
    {"shortest_queue": shortest_queue, "lottery": lottery}
)
"""By the names that the original's `--dispatch-method` has; the first is the default."""
