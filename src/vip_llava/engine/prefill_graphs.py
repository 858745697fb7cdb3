"""Prefill steps as graphs: the new tokens of one sequence in, the logits of its next token out.

Launching the hundreds of kernels of a prompt takes the host longer than a fast GPU takes to run
them. So the step is captured for a few numbers of tokens, to which a prompt (or what is new of it)
is padded at the end. A size is captured when it occurs for the second time, or by `warm_up`.

This module does not decide which sequences run.
Shape letters: N tokens of a size, C width, W blocks of the longest sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vip_llava.engine.device_transfer import to_device_async
from vip_llava.engine.fused_runner import FusedLlama
from vip_llava.engine.graph_pool import Graph, GraphCache, GraphPool
from vip_llava.engine.kv_cache import KVCache
from vip_llava.engine.sequence import Sequence
from vip_llava.kernels import BLOCK_SIZE, PrefillChunk

__all__ = ["PrefillGraphs", "padded_size"]

_MAX_TOKENS = 1024
"""Beyond it the kernels take longer than their launches."""
_MAX_GRAPHS = 16
_ALIGNMENT = 4  # integers; kernels are compiled once for all addresses that are multiples of 16
_HEAD = 4  # tokens before the new ones, tokens in all, index of the last new one, unused


def padded_size(count: int) -> int:
    """The size that `count` tokens are padded to: 16, 32 or a multiple of 64."""
    return next((size for size in (16, 32) if size >= count), -(-count // 64) * 64)


class PrefillGraphs:
    """The prefill graphs of one model over one KV cache."""

    def __init__(self, llama: FusedLlama, kv_cache: KVCache, pool: GraphPool) -> None:
        self._llama, self._kv_cache, self._pool = llama, kv_cache, pool
        self._max_tokens = min(_MAX_TOKENS, padded_size(llama.max_positions))
        self._width = -(-llama.max_positions // (BLOCK_SIZE * _ALIGNMENT)) * _ALIGNMENT
        numbers = _HEAD + self._width + 3 * self._max_tokens
        self._numbers = torch.zeros(numbers, dtype=torch.int32, device=pool.device)
        # [max tokens, C]: image features at the positions of their tokens; the rest is not read.
        self._features = llama.embed(self._numbers[: self._max_tokens]).zero_()
        self._graphs = GraphCache(_MAX_GRAPHS)
        self._seen: set[int] = set()

    def accepts(self, count: int) -> bool:
        """Whether `count` new tokens may be prefilled here now; not for the first of a size."""
        size = padded_size(count)
        if size > self._max_tokens:
            return False
        seen = size in self._seen
        self._seen.add(size)
        return seen

    def __call__(self, seq: Sequence, count: int) -> Tensor:
        """Prefill the next `count` tokens of a sequence, whose features are there: logits [1, V].

        Does not synchronize. The logits are valid until any graph of the pool is called.
        """
        start, end, size = seq.num_computed, seq.num_computed + count, padded_size(count)
        slots = seq.slot_mapping(end)
        self._kv_cache.reserve(int(slots.max()) + 1)
        graph = self._graph(size)
        numbers = torch.zeros(_HEAD + self._width + 3 * size, dtype=torch.int32)
        numbers[:3] = torch.tensor([start, end, count - 1])
        blocks = seq.block_table[: -(-end // BLOCK_SIZE)]
        numbers[_HEAD : _HEAD + len(blocks)] = torch.tensor(blocks)
        positions, slot_mapping, ids = numbers[_HEAD + self._width :].view(3, size)
        torch.arange(start, end, out=positions[:count])
        slot_mapping[:count] = slots[start:]
        slot_mapping[count:] = -1
        ids[:count] = torch.tensor(seq.ids(start, end))
        first, last = seq.image_range(start, end)
        if last > first:
            assert seq.image_features is not None, "features are computed before the step"
            at = torch.tensor(seq.image_positions[first:last]) - start
            ids[at] = -1
            at = to_device_async(at, self._features.device)
            features = seq.image_features[first:last].to(self._features)
            self._features.index_copy_(0, at, features)
        if self._numbers.is_cuda:
            numbers = numbers.pin_memory()
        self._numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        return graph()

    def warm_up(self, counts: Iterable[int]) -> None:
        """Capture the sizes of these numbers of tokens now, as far as they are captured at all."""
        self._kv_cache.reserve(1)
        sizes = {padded_size(count) for count in counts if 0 < count <= self._max_tokens}
        for size in sorted(sizes, reverse=True):
            self._seen.add(size)
            self._graph(size)

    def _graph(self, size: int) -> Graph:
        self._llama.allocate_kv_cache()
        generation = self._kv_cache.generation
        return self._graphs.get(size, generation, lambda: self._capture(size))

    def _capture(self, size: int) -> Graph:
        # Capturing runs the step a few times: with a sequence of no tokens, which writes nothing.
        self._numbers.zero_()
        slots = slice(_HEAD + self._width + size, _HEAD + self._width + 2 * size)
        self._numbers[slots] = -1
        return self._pool.capture(lambda: self._step(size))

    def _step(self, size: int) -> Tensor:
        """The captured work: logits [1, V]."""
        head, table = self._numbers[:_HEAD], self._numbers[_HEAD : _HEAD + self._width]
        positions, slots, ids = self._numbers[_HEAD + self._width :][: 3 * size].view(3, size)
        words = self._llama.embed(ids.clamp(min=0))
        embeds = torch.where(ids.unsqueeze(1) < 0, self._features[:size], words)
        chunk = PrefillChunk(slots, table, span=head[:2])
        return self._llama.prefill(embeds, positions, chunk, last=head[2:3])
