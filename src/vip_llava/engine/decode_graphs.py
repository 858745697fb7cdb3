"""One recorded step for requests that are being answered: a token in, a token out of each.

The number of requests is rounded up to a bucket, and each bucket has a recording of the whole step
(embedding, layers, logits, the most probable token) over buffers that stay where they
are. What changes from step to step is a few whole numbers a request, sent in one copy. A step may
take its tokens from the step before it while they are still on the device, so it can be started
before anybody has read those.

This module knows rows and places; it decides nothing, and knows no text.
Shape letters: R requests of a bucket, W blocks of the longest text, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vip_llava.engine.block_manager import BLOCK_TOKENS, KVMemory
from vip_llava.engine.fused_runner import Answers, FusedLlama
from vip_llava.engine.graph_pool import Recorder, Recording, Recordings
from vip_llava.engine.sampler import Sampler
from vip_llava.engine.scheduler import Row

__all__ = ["DecodeStep", "Flight", "buckets"]

_FIELDS = 5  # token, where the token is taken from, position, place, length
_ALIGNED = 4  # numbers; kernels are made once for all addresses that are multiples of 16 bytes


def buckets(most: int) -> list[int]:
    """Numbers of requests that steps are recorded for; `most` fits the last."""
    found = [1, 2, 4, 8, 16, 24, 32, 48, 64]
    while found[-1] < most:
        found.append(found[-1] + 32)
    return [*(size for size in found if size < most), next(s for s in found if s >= most)]


@dataclass(slots=True, eq=False)
class Flight:
    """A step that was started; its tokens are read by `tokens`."""

    step: DecodeStep
    rows: list[Row]
    logits: Tensor
    """[R, V] of its rows, until the next step of the same kind is started."""
    slot: _Slot

    @property
    def told(self) -> bool:
        """Whether anything but its tokens is asked for."""
        return any(row.sampling.params.logprobs is not None for row in self.rows)

    def tokens(self) -> list[int | None]:
        """The token of each row; None where the outputs are not finite numbers."""
        found = self.slot.read(len(self.rows))
        return [None if token < 0 else token for token in found]


class DecodeStep:
    """The recordings of one model over one memory."""

    def __init__(
        self,
        llama: FusedLlama,
        memory: KVMemory,
        recorder: Recorder,
        *,
        most: int,
        positions: int,
        banned: Collection[int],
    ) -> None:
        """most: requests at the same time. positions: no text gets longer."""
        self._llama, self._memory, self._recorder = llama, memory, recorder
        self.buckets = buckets(most)
        self._top = max(self.buckets[-1], _ALIGNED)
        self._width = -(-positions // BLOCK_TOKENS)
        device, size = recorder.device, self._top * (_FIELDS + self._width)
        # The tokens of the step before, then what the host sends: a token is taken from either.
        self._numbers = torch.zeros(self._top + size, dtype=torch.int32, device=device)
        self._told = torch.zeros(self._top, dtype=torch.int32, device=device)
        ids = sorted({token for token in banned if 0 <= token < llama.vocabulary})
        self._banned = torch.tensor(ids, dtype=torch.long, device=device)
        self._sampler = Sampler(device, banned)
        self._slots = [_Slot(size, self._width, self._top, device) for _ in range(2)]
        self._recordings = Recordings()

    def launch(self, rows: Sequence[Row], before: Flight | None = None) -> Flight:
        """Start a step for rows with one token each to feed; nothing is waited for.

        before: a step of these rows (or more) that is not read yet; theirs feed what it gives.
        """
        size = next(size for size in self.buckets if size >= len(rows))
        starts = [row.stored + (before is not None) for row in rows]
        places = [_place(row, at) for row, at in zip(rows, starts, strict=True)]
        self._memory.reach(max(places) + 1)
        recording = self._recording(size)
        slot = self._slots.pop(0)
        self._slots.append(slot)
        count = slot.fill(rows, starts, size, self._top, before.rows if before else None)
        self._numbers[self._top : self._top + count].copy_(slot.sent[:count], non_blocking=True)
        logits = recording()
        if not all(_plain(row) for row in rows):
            self._choose(logits, rows)
        slot.receive(self._told, len(rows))
        return Flight(self, list(rows), logits[: len(rows)], slot)

    def warm_up(self) -> None:
        """Record every bucket now, the largest first, so that the others find its memory."""
        self._memory.reach(1)
        for size in reversed(self.buckets):
            self._recording(size)

    def _choose(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """Put other tokens in the place of the most probable ones."""
        states = [row.sampling for row in rows]
        tokens, fine = self._sampler.choose(logits[: len(rows)], states)
        self._numbers[: len(rows)] = tokens
        self._told[: len(rows)] = torch.where(fine > 0, tokens, -1)

    def _recording(self, size: int) -> Recording:
        self._llama.lay_out()
        return self._recordings.of(size, self._memory.moves, lambda: self._made(size))

    def _made(self, size: int) -> Recording:
        before = self._numbers.clone()
        # Recording makes the step a few times: for requests of no tokens, which write nothing.
        idle = _parted(self._numbers[self._top :], size, self._width)[0]
        idle.zero_()
        idle[3] = -1
        recording = self._recorder.record(lambda: self._work(size))
        self._numbers.copy_(before)
        return recording

    def _work(self, size: int) -> Tensor:
        """The step itself: logits [R, V], and the tokens where the next step and the host look."""
        fields, table, _ = _parted(self._numbers[self._top :], size, self._width)
        _, source, positions, places, lengths = fields
        embeds = self._llama.embed(self._numbers.index_select(0, source))
        logits = self._llama.answers(embeds, Answers(positions, places, table, lengths))
        scores = logits.float()
        if self._banned.numel():
            scores = scores.index_fill(1, self._banned, -math.inf)
        best, tokens = scores.max(dim=-1)
        self._numbers[:size] = tokens
        self._told[:size] = torch.where(best.isfinite(), tokens, -1)
        return logits


class _Slot:
    """Host memory of one step: the numbers that are sent, the tokens that come back."""

    def __init__(self, size: int, width: int, most: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._width = width
        self.sent = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self._numbers = self.sent.numpy()
        self._back = torch.zeros(most, dtype=torch.int32, pin_memory=pinned)
        self._arrived: Any = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._tables: list[tuple[list[int], int]] = []
        self._size = 0

    def fill(
        self,
        rows: Sequence[Row],
        starts: Sequence[int],
        size: int,
        top: int,
        before: Sequence[Row] | None,
    ) -> int:
        """Put down what a step of `size` has to know; says how many numbers that are."""
        if self._arrived is not None:
            self._arrived.synchronize()  # a step that nobody read may still be on its way
        count = len(rows)
        fields, table, end = _parted(self._numbers, size, self._width)
        token, source, position, place, length = fields
        token[:] = position[:] = length[:] = 0
        place[:] = -1
        source[:] = np.arange(top, top + size)
        if before is None:
            token[:count] = [row.ids(at, at + 1)[0] for row, at in zip(rows, starts, strict=True)]
        else:
            seats = {id(row): seat for seat, row in enumerate(before)}
            source[:count] = [seats[id(row)] for row in rows]
        position[:count] = starts
        length[:count] = position[:count] + 1
        place[:count] = [_place(row, at) for row, at in zip(rows, starts, strict=True)]
        self._fill_tables(rows, table)
        return end

    def _fill_tables(self, rows: Sequence[Row], table: npt.NDArray[np.int32]) -> None:
        """The blocks of each row, where they are not there from the last time."""
        if len(table) != self._size:
            self._tables, self._size = [], len(table)
        known = self._tables
        del known[len(rows) :]
        for seat, row in enumerate(rows):
            count = len(row.blocks)
            if seat == len(known):
                known.append(([], 0))
            # A request that was put off has another list.
            blocks, had = known[seat]
            if blocks is not row.blocks:
                had = 0
            if count > had:
                table[seat, had:count] = row.blocks[had:]
            known[seat] = (row.blocks, count)

    def receive(self, told: Tensor, count: int) -> None:
        """Have the tokens of a step come back when it is done."""
        self._back[:count].copy_(told[:count], non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def read(self, count: int) -> list[int]:
        """The tokens that came back, waiting for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[int] = self._back[:count].tolist()
        return found


def _parted(numbers: Any, size: int, width: int) -> tuple[Any, Any, int]:
    """Fields [5, size] and blocks [size, width] of what a step is sent, and where that ends.

    `numbers`: a tensor or an array; the parts are views of it.
    """
    room = -(-size // _ALIGNED) * _ALIGNED
    end = _FIELDS * room + size * width
    fields = numbers[: _FIELDS * room].reshape(_FIELDS, room)[:, :size]
    return fields, numbers[_FIELDS * room : end].reshape(size, width), end


def _place(row: Row, at: int) -> int:
    """Where a token of a request lies in the memory."""
    return row.blocks[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS


def _plain(row: Row) -> bool:
    return row.sampling.params.greedy and row.sampling.params.repetition_penalty == 1.0
