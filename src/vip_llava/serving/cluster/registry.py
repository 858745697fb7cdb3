"""The workers that a controller knows: who is there, what they serve, how busy they are.

Plain bookkeeping with a clock handed in. Whether a worker is genuine was decided before it is added
here (`controller`), and nothing here opens a connection. For one thread, that of the event loop.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vip_llava.errors import ServingError
from vip_llava.serving.cluster.dispatch import DISPATCH

__all__ = ["EXPIRY_SECONDS", "Member", "ModelName", "Registry", "WorkerStatus"]

EXPIRY_SECONDS = 45.0
"""A worker that has not been heard of for so long is dropped: three signs of life are missing."""

_AWAITED_SECONDS = 120.0

ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f\x7f]+$")
]


class WorkerStatus(BaseModel):
    """What a worker says of itself; the original's three fields, with bounds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model_names: Annotated[list[ModelName], Field(min_length=1, max_length=64)]
    speed: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    queue_length: Annotated[int, Field(ge=0, le=1_000_000)] = 0


@dataclass(slots=True, eq=False)
class Member:
    """A worker. `address` is where it listens, as `http://host:port`."""

    address: str
    models: tuple[str, ...]
    speed: float
    reported: int
    """Requests that it says it has."""
    last_seen: float
    checked: bool = True
    """Whether silence drops it."""
    passing: int = 0
    """Requests that this controller is passing on to it now."""
    last_chosen: int = 0
    suspected: bool = False
    """A connection to it broke: it gets nothing new until it is heard of. What it has goes on."""
    gone: str = ""
    """Why it was dropped; empty while it counts."""
    _when_gone: list[Callable[[], None]] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Requests that it has: what it said last, or what is known to be on its way."""
        return max(self.reported, self.passing)

    def when_gone(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call that once it is dropped, at once if it is; gives a function that takes it back."""
        if self.gone:
            call()
            return lambda: None
        self._when_gone.append(call)
        return lambda: self._when_gone.remove(call) if call in self._when_gone else None

    def drop(self, reason: str) -> None:
        """It does not count any more."""
        if self.gone:
            return
        self.gone = reason
        calls, self._when_gone = self._when_gone, []
        for call in calls:
            call()


class Registry:
    """The members by address."""

    def __init__(
        self,
        dispatch: str = "shortest_queue",
        *,
        expiry: float = EXPIRY_SECONDS,
        capacity: int = 256,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        """dispatch: a name of `DISPATCH`. expiry: seconds of silence that a worker may keep.

        Raises ServingError for an unknown dispatch.
        """
        if dispatch not in DISPATCH:
            raise ServingError(f"dispatch {dispatch!r}: known are {', '.join(DISPATCH)}")
        if not 0 < expiry < math.inf:
            raise ServingError(f"expiry {expiry!r}: needs a number of seconds above 0")
        self._choose = DISPATCH[dispatch]
        self._expiry, self._capacity, self._clock = expiry, capacity, clock
        self._chance = chance or random.Random()
        self._members: dict[str, Member] = {}
        self._turn = itertools.count(1)
        self._awaited: dict[str, float] = {}

    def expect(self, model: str, seconds: float = math.inf) -> None:
        """A worker of that model is on its way, or was just lost, and will come within that time."""
        self._awaited[model] = self._clock() + seconds

    def awaited(self, model: str) -> bool:
        """Whether a model that nobody serves now is expected."""
        return self._awaited.get(model, -math.inf) > self._clock()

    @property
    def members(self) -> tuple[Member, ...]:
        """All that count, in the order in which they came."""
        return tuple(member for member in self._members.values() if not member.suspected)

    @property
    def everyone(self) -> tuple[Member, ...]:
        """The members, and those that are suspected."""
        return tuple(self._members.values())

    def add(self, address: str, status: WorkerStatus, *, checked: bool = True) -> Member:
        """A worker joins, or tells its models anew; requests on their way to it go on.

        ServingError where there is no room for another one.
        """
        known = self._members.get(address)
        if known is None:
            if len(self._members) >= self._capacity:
                raise ServingError(f"there are {self._capacity} workers already; one has to leave")
            known = Member(address, (), 1.0, 0, 0.0)
            self._members[address] = known
        known.models = tuple(dict.fromkeys(status.model_names))
        known.speed, known.reported = status.speed, status.queue_length
        known.checked, known.last_seen, known.suspected = checked, self._clock(), False
        return known

    def beat(self, address: str, queue_length: int) -> bool:
        """A sign of life; False if the worker is not known and has to join."""
        member = self._members.get(address)
        if member is None:
            return False
        member.reported, member.last_seen = queue_length, self._clock()
        member.suspected = False
        return True

    def suspect(self, address: str) -> None:
        """A connection to a worker broke: ask others until it is heard of, or silent for too long.

        Not more than that: other requests that it has may be in the best of health.
        """
        member = self._members.get(address)
        if member is not None:
            member.suspected = True
            self._await(member)

    def drop(self, address: str, reason: str) -> bool:
        """A worker is gone, and nobody waits for it any longer; False if it is not known."""
        member = self._pop(address)
        if member is None:
            return False
        member.drop(reason)
        return True

    def leave(self, address: str) -> bool:
        """A worker gets nothing new, and ends what it has; False if it is not known."""
        return self._pop(address) is not None

    def _pop(self, address: str) -> Member | None:
        member = self._members.pop(address, None)
        if member is not None:
            self._await(member)
        return member

    def _await(self, member: Member) -> None:
        """Somebody will serve its models again before long."""
        self._awaited = {name: end for name, end in self._awaited.items() if self.awaited(name)}
        for name in member.models:
            self._awaited.setdefault(name, self._clock() + _AWAITED_SECONDS)

    def sweep(self) -> list[Member]:
        """Drop the workers that were silent for too long; they are returned."""
        oldest = self._clock() - self._expiry
        silent = [m for m in self._members.values() if m.checked and m.last_seen < oldest]
        for member in silent:
            self.drop(member.address, f"silent for more than {self._expiry:.0f} s")
        return silent

    def models(self) -> list[str]:
        """The names of all models that are served, sorted."""
        return sorted({name for member in self.members for name in member.models})

    def pick(self, model: str, without: Collection[Member] = ()) -> Member | None:
        """The worker that gets the next request for a model; None if none serves it.

        The caller counts it in `passing` for as long as it passes a request on.
        """
        able = [m for m in self.members if model in m.models and m not in without]
        if not able:
            return None
        chosen = self._choose(able, self._chance)
        assert isinstance(chosen, Member)
        chosen.last_chosen = next(self._turn)
        return chosen

    def status(self) -> WorkerStatus | None:
        """All workers as if they were one, None without any; so a controller may be a worker too."""
        members = self.members
        if not members:
            return None
        return WorkerStatus(
            model_names=self.models()[:64],
            speed=float(sum(member.speed for member in members)),
            queue_length=sum(member.load for member in members),
        )
