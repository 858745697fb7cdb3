"""Who runs in the next step, and with how many tokens.

Requests come in order and keep it: those being answered get one token each, the rest of the step's
tokens go to prompts, the earliest first, in pieces if need be, so that a long prompt does not stop
the others. Nobody overtakes when memory is short: the latest request is put off, gives its memory
back and later reads its text anew. The earliest request can always go on, so every one ends.

This module does the accounting. It runs no model and knows no text.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vip_llava.engine.block_manager import Blocks
from vip_llava.engine.detokenizer import TextStream
from vip_llava.engine.prefix_cache import block_key
from vip_llava.engine.sampler import Logprobs, SamplingState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FinishReason", "Row", "Scheduler", "TokenEvent"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of an answer and the text that became certain by it."""

    token: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


@dataclass(slots=True, eq=False)
class Row:
    """One request on its way; what the engine knows of it. Times are of `time.perf_counter`."""

    number: int
    """Its place in the order of arrival."""
    prompt: list[int]
    limit: int
    """Most tokens of the answer."""
    sampling: SamplingState
    stream: TextStream | None
    pixels: Tensor | None
    views: list[bytes]
    """A digest of each view."""
    image_at: list[int]
    """Where in the prompt image tokens stand."""
    arrived_at: float
    on_event: Callable[[TokenEvent], None] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    features: Tensor | None = None
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Of the full blocks, as far as they were needed."""
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    stored: int = 0
    """Tokens whose keys and values are in the memory."""
    cached: int = 0
    """Prompt tokens that were in the memory already when it began."""
    cancelled: bool = False
    done: bool = False
    error: BaseException | None = None
    finish_reason: FinishReason | None = None
    first_token_at: float = 0.0
    finished_at: float = 0.0
    events: deque[TokenEvent] = field(default_factory=deque)
    guessed: bool = False
    """`views` may be wrong: they are those of images that look alike."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.prompt) + len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that have to be fed before the next one can be chosen."""
        return self.length - self.stored

    def ids(self, start: int, end: int) -> list[int]:
        """Token ids of a part of prompt and answer."""
        size = len(self.prompt)
        return self.prompt[start:end] + self.tokens[max(0, start - size) : max(0, end - size)]

    def images(self, start: int, end: int) -> tuple[int, int]:
        """Which image tokens, counted from the first, stand in a part of the text."""
        return bisect_left(self.image_at, start), bisect_left(self.image_at, end)

    @property
    def first_place(self) -> int | None:
        """The first place, if all places lie one after the other."""
        first = self.blocks[0]
        if self.blocks[-1] - first + 1 != len(self.blocks):
            return None
        rising = all(block == first + at for at, block in enumerate(self.blocks))
        return int(self.places[0]) if rising else None


class Scheduler:
    """The queue and the running requests. Not thread-safe; the engine holds a lock."""

    def __init__(
        self, blocks: Blocks, block_tokens: int, max_running: int, step_tokens: int
    ) -> None:
        """`step_tokens`: most tokens of a step, more than `max_running`; `plan` may be given more."""
        if step_tokens <= max_running:
            raise ValueError(f"{step_tokens} tokens a step do not serve {max_running} requests")
        self._blocks = blocks
        self._size = block_tokens
        self._slots = torch.arange(block_tokens)
        self._max_running = max_running
        self._step_tokens = step_tokens
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self.preemptions = 0
        self._crowded = False

    @property
    def idle(self) -> bool:
        """Whether nobody waits or runs."""
        return not self.waiting and not self.running

    def join(self, row: Row) -> None:
        """Queue a request at its place in the order of arrival."""
        insort(self.waiting, row, key=lambda one: one.number)

    def leave(self, row: Row) -> None:
        """A request is over or given up; its memory is free from now on."""
        (self.running if row in self.running else self.waiting).remove(row)
        self._release(row)
        self._crowded = False

    def plan(self, step_tokens: int | None = None, *, whole: bool = False) -> list[tuple[Row, int]]:
        """The requests of the next step and how many tokens each feeds; memory is set aside.

        step_tokens: most of this step. whole: a prompt that does not fit behind another waits for
        the next step, instead of being cut.
        """
        chosen: list[tuple[Row, int]] = []
        before = self.preemptions
        room = step_tokens or self._step_tokens
        room = left = room - sum(row.pending == 1 for row in self.running)
        for row in list(self.running):
            if whole and left < min(row.pending, room):
                left = 0
            count = 1 if row.pending == 1 else min(row.pending, left)
            if row not in self.running or not count or not self._make_room(row, count):
                continue
            left -= count if row.pending > 1 else 0
            chosen.append((row, count))
        # After somebody was put off nobody joins: it would only be put off in turn.
        while self.preemptions == before and left:
            if whole and left < room and left < self._news():
                break
            joined = self._admit()
            if joined is None:
                break
            count = min(joined.pending, left)
            left -= count
            chosen.append((joined, count))
        return chosen

    def fed(self, row: Row, count: int) -> None:
        """`count` tokens of a request are in the memory now; full blocks can be found from now."""
        full = row.stored // self._size
        row.stored += count
        if self._blocks.index.limit:
            self._extend_keys(row, row.stored // self._size)
            for at in range(full, row.stored // self._size):
                self._blocks.index.add(row.blocks[at], row.keys[at])

    def crowded(self) -> None:
        """The machine can't do more than runs now: nobody joins until somebody leaves."""
        self._crowded = True

    def put_off(self, row: Row) -> None:
        """A running request gives back its memory and waits to begin anew."""
        self.preemptions += 1
        self.running.remove(row)
        self._release(row)
        self.join(row)

    @property
    def settled(self) -> bool:
        """Whether nobody could join now."""
        return not self.waiting or self._known(self.waiting[0]) is None

    def ahead(self, rows: Sequence[Row]) -> bool:
        """Room for one token more than the next of each, if nobody has to give way for it."""
        short = sum(len(row.blocks) * self._size < row.stored + 2 for row in rows)
        return short <= self._blocks.available and all(self._make_room(row, 2) for row in rows)

    def _news(self) -> int:
        """Tokens that the first in the queue would have to read."""
        known = self._known(self.waiting[0]) if self.waiting else None
        return 0 if known is None else self.waiting[0].length - len(known) * self._size

    def _admit(self) -> Row | None:
        """Let the first in the queue run, if there is room for all it has to read."""
        if not self.waiting:
            return None
        row = self.waiting[0]
        known = self._known(row)
        if known is None:
            return None
        self._blocks.share(known)
        self._hold(row, known)
        # All of it at once: what it was let in for must not go to the next in the queue.
        self._make_room(row, row.length + 1)
        row.stored = len(known) * self._size
        if not row.tokens:
            row.cached = row.stored
        self.waiting.pop(0)
        # It may have come before some that run: put off, or slower on its way into the queue.
        insort(self.running, row, key=lambda one: one.number)
        return row

    def _known(self, row: Row) -> list[int] | None:
        """The blocks that a waiting request would find; None where it can't run now."""
        if len(self.running) >= self._max_running or (self._crowded and self.running):
            return None
        known: list[int] = []
        if self._blocks.index.limit:
            # At least one token is fed, because the next one is chosen from what that gives.
            self._extend_keys(row, (row.length - 1) // self._size)
            known = self._blocks.index.find(row.keys[: (row.length - 1) // self._size])
        needed = -(-(row.length + 1) // self._size) - len(known)
        taken = sum(self._blocks.index.is_idle(block) for block in known)
        return None if needed > self._blocks.available - taken else known

    def _make_room(self, row: Row, count: int) -> bool:
        """Blocks for `count` more tokens, if need be those of the latest; False: it was itself."""
        while (missing := -(-(row.stored + count) // self._size) - len(row.blocks)) > 0:
            taken = [self._blocks.take() for _ in range(min(missing, self._blocks.available))]
            self._hold(row, [block for block in taken if block is not None])
            if len(taken) == missing:
                continue
            latest = self.running[-1]
            self.put_off(latest)
            if latest is row:
                return False
        return True

    def _hold(self, row: Row, blocks: list[int]) -> None:
        if not len(row.places):
            most = -(-(len(row.prompt) + row.limit) // self._size) * self._size
            row.places = torch.empty(most, dtype=torch.long)
        if blocks:
            first = torch.tensor(blocks, dtype=torch.long).unsqueeze(1) * self._size
            places = row.places.view(-1, self._size)
            torch.add(
                first, self._slots, out=places[len(row.blocks) : len(row.blocks) + len(blocks)]
            )
            row.blocks += blocks

    def _release(self, row: Row) -> None:
        self._blocks.release(row.blocks)
        row.blocks = []
        row.stored = 0
        row.features = None

    def _extend_keys(self, row: Row, count: int) -> None:
        """Know the keys of the first `count` blocks, which must be full."""
        begin, size = len(row.keys) * self._size, self._size
        ids = row.ids(begin, count * size)
        previous = row.keys[-1] if row.keys else b""
        for start in range(begin, count * size, size):
            images: list[bytes] = []
            first, last = row.images(start, start + size) if row.image_at else (0, 0)
            if last > first:
                per_view = len(row.image_at) // len(row.views)
                images = row.views[first // per_view : (last - 1) // per_view + 1]
            previous = block_key(previous, ids[start - begin : start - begin + size], images)
            row.keys.append(previous)
