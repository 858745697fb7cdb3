"""`WorkerRegistry`: the workers of a controller, what they serve, how busy they are.

Plain bookkeeping with an injected clock, for the event loop's thread. It opens no connections:
`admission` verifies a worker before it is added.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vip_llava.errors import ServingError

__all__ = [
    "DISPATCH",
    "EXPIRY_SECONDS",
    "ModelName",
    "RegisteredWorker",
    "WorkerRegistry",
    "WorkerStatus",
]

EXPIRY_SECONDS = 45.0
"""A worker without a heartbeat for this time is dropped; it is three missed heartbeats."""

_EXPECTED_SECONDS = 120.0

ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f\x7f]+$")
]


class WorkerStatus(BaseModel):
    """What a worker reports: the three fields of the original, with bounds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model_names: Annotated[list[ModelName], Field(min_length=1, max_length=64)]
    speed: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    queue_length: Annotated[int, Field(ge=0, le=1_000_000)] = 0


@dataclass(slots=True, eq=False)
class RegisteredWorker:
    """A worker at `address`, http://host:port."""

    address: str
    models: tuple[str, ...]
    speed: float
    reported_load: int
    """Its number of requests as of its last heartbeat."""
    last_seen: float
    expires: bool = True
    """Whether missing heartbeats drop it."""
    in_flight: int = 0
    """Requests that this controller is forwarding to it."""
    last_picked: int = 0
    suspected: bool = False
    """A connection to it broke: it gets no new requests until its next heartbeat."""
    drop_reason: str = ""
    """Why it was dropped; empty as long as it is registered."""
    _drop_callbacks: list[Callable[[], None]] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Its number of requests: the reported or the forwarded ones, whichever is larger."""
        return max(self.reported_load, self.in_flight)

    def on_drop(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when it is dropped, at once if it is already; returns a function to cancel."""
        if self.drop_reason:
            callback()
            return lambda: None
        callbacks = self._drop_callbacks
        callbacks.append(callback)
        return lambda: callbacks.remove(callback) if callback in callbacks else None

    def drop(self, reason: str) -> None:
        """Mark it as dropped and run the callbacks, once."""
        if self.drop_reason:
            return
        self.drop_reason = reason
        for callback in tuple(self._drop_callbacks):
            callback()
        self._drop_callbacks.clear()


Dispatch = Callable[[Sequence[RegisteredWorker], random.Random], RegisteredWorker]


def _lottery(workers: Sequence[RegisteredWorker], rng: random.Random) -> RegisteredWorker:
    return rng.choices(workers, [worker.speed for worker in workers])[0]


def _shortest_queue(workers: Sequence[RegisteredWorker], _rng: random.Random) -> RegisteredWorker:
    return min(workers, key=lambda worker: (worker.load / worker.speed, worker.last_picked))


DISPATCH: Mapping[str, Dispatch] = MappingProxyType(
    {"shortest_queue": _shortest_queue, "lottery": _lottery}
)
"""Choices of the original's `--dispatch-method`; the first is the default.

shortest_queue: the fewest requests relative to speed, then the least recently picked.
lottery: a random worker, weighted by speed.
"""


class WorkerRegistry:
    """The registered workers by address."""

    def __init__(
        self,
        dispatch: str = "shortest_queue",
        *,
        expiry: float = EXPIRY_SECONDS,
        capacity: int = 256,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            dispatch: a name of `DISPATCH`.
            expiry: seconds without a heartbeat after which a worker is dropped.

        Raises:
            ServingError: an unknown dispatch method, or an expiry that is not positive.
        """
        if dispatch not in DISPATCH:
            raise ServingError(f"dispatch {dispatch!r}: must be one of {', '.join(DISPATCH)}")
        if not 0 < expiry < math.inf:
            raise ServingError(f"expiry {expiry!r}: must be a positive number of seconds")
        self._dispatch = DISPATCH[dispatch]
        self._expiry, self._capacity, self._clock = expiry, capacity, clock
        self._rng = rng or random.Random()
        self._workers: dict[str, RegisteredWorker] = {}
        self._picks = itertools.count(1)
        self._expected_until: dict[str, float] = {}

    def expect(self, model: str, seconds: float = math.inf) -> None:
        """Announce that a worker of the model will register within this time."""
        self._expected_until[model] = self._clock() + seconds

    def is_expected(self, model: str) -> bool:
        """Whether a worker of the model is announced, or was lost a moment ago."""
        return self._expected_until.get(model, -math.inf) > self._clock()

    @property
    def available(self) -> tuple[RegisteredWorker, ...]:
        """The workers that get new requests, in the order of registration."""
        return tuple(worker for worker in self._workers.values() if not worker.suspected)

    @property
    def registered(self) -> tuple[RegisteredWorker, ...]:
        """All workers, including suspected ones."""
        return tuple(self._workers.values())

    def add(self, address: str, status: WorkerStatus, *, expires: bool = True) -> RegisteredWorker:
        """Register a worker, or update a known one; its requests in flight go on.

        Raises:
            ServingError: the registry is full.
        """
        worker = self._workers.get(address)
        if worker is None:
            if len(self._workers) >= self._capacity:
                raise ServingError(f"{self._capacity} workers are registered, which is the limit")
            worker = RegisteredWorker(address, (), 1.0, 0, 0.0)
            self._workers[address] = worker
        worker.models = tuple(dict.fromkeys(status.model_names))
        worker.speed, worker.reported_load = status.speed, status.queue_length
        worker.expires, worker.last_seen, worker.suspected = expires, self._clock(), False
        return worker

    def heartbeat(self, address: str, queue_length: int) -> bool:
        """Record a heartbeat; False if the worker is unknown and must register."""
        worker = self._workers.get(address)
        if worker is None:
            return False
        worker.reported_load, worker.last_seen = queue_length, self._clock()
        worker.suspected = False
        return True

    def suspect(self, address: str) -> None:
        """Send a worker no new requests until its next heartbeat, after a connection broke.

        Its other requests go on: they may be unaffected.
        """
        worker = self._workers.get(address)
        if worker is not None:
            worker.suspected = True
            self._expect_again(worker)

    def drop(self, address: str, reason: str) -> bool:
        """Remove a worker and abort its requests in flight; False if it is unknown."""
        worker = self._pop(address)
        if worker is None:
            return False
        worker.drop(reason)
        return True

    def unregister(self, address: str) -> bool:
        """Remove a worker and let its requests in flight finish; False if it is unknown."""
        return self._pop(address) is not None

    def _pop(self, address: str) -> RegisteredWorker | None:
        worker = self._workers.pop(address, None)
        if worker is not None:
            self._expect_again(worker)
        return worker

    def _expect_again(self, worker: RegisteredWorker) -> None:
        """Expect another worker of its models for a while."""
        now = self._clock()
        self._expected_until = {m: end for m, end in self._expected_until.items() if end > now}
        for model in worker.models:
            self._expected_until.setdefault(model, now + _EXPECTED_SECONDS)

    def drop_expired(self) -> list[RegisteredWorker]:
        """Drop the workers whose heartbeats are missing; returns them."""
        oldest = self._clock() - self._expiry
        expired = [w for w in self._workers.values() if w.expires and w.last_seen < oldest]
        for worker in expired:
            self.drop(worker.address, f"no heartbeat for more than {self._expiry:.0f} s")
        return expired

    def models(self) -> list[str]:
        """The names of all served models, sorted."""
        return sorted({name for worker in self.available for name in worker.models})

    def pick(
        self, model: str, without: Collection[RegisteredWorker] = ()
    ) -> RegisteredWorker | None:
        """The worker for the next request of a model, or None.

        The caller counts the request in `in_flight` while it forwards it.
        """
        candidates = [w for w in self.available if model in w.models and w not in without]
        if not candidates:
            return None
        picked = self._dispatch(candidates, self._rng)
        picked.last_picked = next(self._picks)
        return picked
