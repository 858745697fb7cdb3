"""Decode steps as graphs: one token in and one token out of each sequence.

The number of sequences is rounded up to a bucket, and each bucket has a graph of the whole step
(embedding, layers, logits, the most probable token) over buffers that stay in place. What changes
from step to step is a few integers a sequence, sent in one copy. A step can take its tokens from the
step before while they are still on the device, so it can be launched before the host reads those.

This module does not decide which sequences run.
Shape letters: R sequences of a bucket, W blocks of the longest sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vip_llava.engine.fused_runner import FusedLlama
from vip_llava.engine.graph_pool import Graph, GraphCache, GraphPool
from vip_llava.engine.kv_cache import KVCache
from vip_llava.engine.sampler import Sampler
from vip_llava.engine.sequence import Sequence
from vip_llava.kernels import BLOCK_SIZE, DecodeBatch

__all__ = ["DecodeGraphs", "InFlightStep", "bucket_sizes", "step_views"]

_FIELDS = 5  # token, where the token is taken from, position, slot, length
_ALIGNMENT = 4  # integers; kernels are compiled once for all addresses that are multiples of 16


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of sequences that have a graph, up to the first that fits `max_num_seqs`."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + 32)
    return sizes[: next(at for at, size in enumerate(sizes) if size >= max_num_seqs) + 1]


def step_views(numbers: Any, size: int, width: int) -> tuple[Any, Any, int]:
    """Fields [5, size] and block tables [size, width] of a step's integers, and where they end.

    `numbers`: a tensor or an array; the results are views of it.
    """
    room = -(-size // _ALIGNMENT) * _ALIGNMENT
    end = _FIELDS * room + size * width
    fields = numbers[: _FIELDS * room].reshape(_FIELDS, room)[:, :size]
    return fields, numbers[_FIELDS * room : end].reshape(size, width), end


@dataclass(slots=True, eq=False)
class InFlightStep:
    """A launched decode step whose tokens were not read yet."""

    graphs: DecodeGraphs
    seqs: list[Sequence]
    logits: Tensor
    """[R, V] of its sequences, valid until the next launch of the same bucket."""
    host: _HostBuffers

    @property
    def needs_logprobs(self) -> bool:
        """Whether a sequence asks for more than its tokens."""
        return any(seq.sampling.params.logprobs is not None for seq in self.seqs)

    def tokens(self) -> list[int | None]:
        """The token of each sequence, waiting for it; None where the logits are not finite."""
        found = self.host.read(len(self.seqs))
        return [None if token < 0 else token for token in found]


class DecodeGraphs:
    """The decode graphs of one model over one KV cache."""

    def __init__(
        self,
        llama: FusedLlama,
        kv_cache: KVCache,
        pool: GraphPool,
        max_num_seqs: int,
        suppress_ids: abc.Collection[int],
    ) -> None:
        self._llama, self._kv_cache, self._pool = llama, kv_cache, pool
        self._buckets = bucket_sizes(max_num_seqs)
        self._top = max(self._buckets[-1], _ALIGNMENT)
        self._width = -(-llama.max_positions // BLOCK_SIZE)
        device, size = pool.device, self._top * (_FIELDS + self._width)
        # The tokens of the previous step, then what the host sends: a token comes from either.
        self._numbers = torch.zeros(self._top + size, dtype=torch.int32, device=device)
        self._sampled = torch.zeros(self._top, dtype=torch.int32, device=device)
        ids = sorted({token for token in suppress_ids if 0 <= token < llama.vocab_size})
        self._suppressed = torch.tensor(ids, dtype=torch.long, device=device)
        self._sampler = Sampler(device, suppress_ids)
        # Two, because a step is launched before the one before it is read.
        self._host = [_HostBuffers(size, self._width, self._top, device) for _ in range(2)]
        self._graphs = GraphCache()

    def launch(
        self, seqs: abc.Sequence[Sequence], previous: InFlightStep | None = None
    ) -> InFlightStep:
        """Launch a step for sequences with one pending token each, without synchronizing.

        previous: a step of these sequences (or more) that was not read yet; its tokens are the
            inputs.
        """
        size = next(size for size in self._buckets if size >= len(seqs))
        positions = [seq.num_computed + (previous is not None) for seq in seqs]
        slots = [seq.slot(at) for seq, at in zip(seqs, positions, strict=True)]
        self._kv_cache.reserve(max(slots) + 1)
        graph = self._graph(size)
        host = self._host.pop(0)
        self._host.append(host)
        before = previous.seqs if previous else None
        count = host.fill(seqs, positions, slots, size, self._top, before)
        self._numbers[self._top : self._top + count].copy_(host.numbers[:count], non_blocking=True)
        logits = graph()
        if not all(seq.sampling.is_argmax for seq in seqs):
            self._sample(logits, seqs)
        host.receive(self._sampled, len(seqs))
        return InFlightStep(self, list(seqs), logits[: len(seqs)], host)

    def warm_up(self) -> None:
        """Capture every bucket now, the largest first, so that the others reuse its memory."""
        self._kv_cache.reserve(1)
        for size in reversed(self._buckets):
            self._graph(size)

    def _sample(self, logits: Tensor, seqs: abc.Sequence[Sequence]) -> None:
        """Replace the most probable tokens by sampled ones."""
        states = [seq.sampling for seq in seqs]
        tokens, finite = self._sampler.choose(logits[: len(seqs)], states)
        self._numbers[: len(seqs)] = tokens
        self._sampled[: len(seqs)] = torch.where(finite > 0, tokens, -1)

    def _graph(self, size: int) -> Graph:
        self._llama.allocate_kv_cache()
        generation = self._kv_cache.generation
        return self._graphs.get(size, generation, lambda: self._capture(size))

    def _capture(self, size: int) -> Graph:
        before = self._numbers.clone()
        # Capturing runs the step a few times: with sequences of no tokens, which write nothing.
        fields, _, _ = step_views(self._numbers[self._top :], size, self._width)
        fields.zero_()
        fields[3] = -1
        graph = self._pool.capture(lambda: self._step(size))
        self._numbers.copy_(before)
        return graph

    def _step(self, size: int) -> Tensor:
        """The captured work: logits [R, V]; stores tokens for the next step and for the host."""
        fields, tables, _ = step_views(self._numbers[self._top :], size, self._width)
        _, source, positions, slots, lengths = fields
        embeds = self._llama.embed(self._numbers.index_select(0, source))
        logits = self._llama.decode(embeds, positions, DecodeBatch(slots, tables, lengths))
        scores = logits.float()
        if self._suppressed.numel():
            scores = scores.index_fill(1, self._suppressed, -math.inf)
        best, tokens = scores.max(dim=-1)
        self._numbers[:size] = tokens
        self._sampled[:size] = torch.where(best.isfinite(), tokens, -1)
        return logits


class _HostBuffers:
    """Host memory of one step: the integers that are sent, the tokens that come back."""

    def __init__(self, size: int, width: int, max_num_seqs: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._width = width
        self.numbers = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self._array = self.numbers.numpy()
        self._received = torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=pinned)
        self._event: Any = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def fill(
        self,
        seqs: abc.Sequence[Sequence],
        positions: abc.Sequence[int],
        slots: abc.Sequence[int],
        size: int,
        top: int,
        before: abc.Sequence[Sequence] | None,
    ) -> int:
        """Write the integers of a step of bucket `size`; returns their number."""
        if self._event is not None:
            self._event.synchronize()  # a step that was not read may still use them
        count = len(seqs)
        fields, tables, end = step_views(self._array, size, self._width)
        token, source, position, slot, length = fields
        token[:] = position[:] = length[:] = 0
        slot[:] = -1
        source[:] = np.arange(top, top + size)
        if before is None:
            token[:count] = [
                seq.ids(at, at + 1)[0] for seq, at in zip(seqs, positions, strict=True)
            ]
        else:
            rows = {id(seq): row for row, seq in enumerate(before)}
            source[:count] = [rows[id(seq)] for seq in seqs]
        position[:count] = positions
        length[:count] = position[:count] + 1
        slot[:count] = slots
        for row, seq in enumerate(seqs):
            tables[row, : len(seq.block_table)] = seq.block_table
        return end

    def receive(self, sampled: Tensor, count: int) -> None:
        """Queue a copy of the step's tokens to the host."""
        self._received[:count].copy_(sampled[:count], non_blocking=True)
        if self._event is not None:
            self._event.record()

    def read(self, count: int) -> list[int]:
        """Wait for the tokens and return them."""
        if self._event is not None:
            self._event.synchronize()
        found: list[int] = self._received[:count].tolist()
        return found
