"""KV memory: handed out in blocks, within a budget, shared where requests begin alike.

`Blocks` does the accounting: who has which block, which are free. `KVMemory` holds the keys and
values of all layers, one place for each token; `StepCache` is what transformers' models write
through during one step. Requests join and leave by taking and returning block numbers; nothing is
copied.

This module knows neither requests nor models; it sees shapes when a layer first writes.
Shape letters: P places (blocks x tokens of a block), N tokens of a step, H key/value heads, D width
of a head.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from vip_llava.engine.prefix_cache import PrefixIndex

__all__ = ["BLOCK_TOKENS", "Blocks", "KVMemory", "StepCache"]

BLOCK_TOKENS = 16
"""Tokens of a block: small enough to waste little, large enough to be found by one hash."""

_FIRST_PLACES = 1024


class Blocks:
    """Block numbers 0 to `count` - 1 with their users. Not thread-safe; the engine holds a lock."""

    def __init__(self, count: int, prefix_blocks: int | None = None) -> None:
        """`prefix_blocks`: at most so many unused blocks are remembered (default: all)."""
        self.count = count
        self.index = PrefixIndex(count if prefix_blocks is None else prefix_blocks)
        # The lowest first, so that memory which was never needed is never touched.
        self._free = list(range(count))
        self._users = [0] * count

    @property
    def available(self) -> int:
        """Blocks that `take` could hand out now."""
        return len(self._free) + self.index.idle

    @property
    def used(self) -> int:
        """Blocks that have a user."""
        return self.count - self.available

    def take(self) -> int | None:
        """A block for one user, at the cost of a remembered one if need be; None if all are used."""
        block = heapq.heappop(self._free) if self._free else self.index.evict()
        if block is not None:
            self._users[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """One more user for each of these blocks, which were found in the index."""
        for block in blocks:
            self._users[block] += 1
            self.index.use(block)

    def release(self, blocks: Sequence[int]) -> None:
        """A user leaves these blocks, given in the order of the text.

        The end is left first: should room be needed, the beginning, which more requests may have
        in common, is forgotten last.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                for freed in self.index.leave(block):
                    heapq.heappush(self._free, freed)

    def forget(self) -> None:
        """Forget all contents: nothing that is there now is found again."""
        for freed in self.index.clear():
            heapq.heappush(self._free, freed)


class KVMemory:
    """Keys and values [P, H, D] of every layer, laid out as far as places are in use.

    It grows by doubling up to its budget, so that a small machine that answers one request does not
    pay for many. Each layer's memory lies where the layer computes, so a model may be spread over
    devices.
    """

    def __init__(self, blocks: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.places = blocks * block_tokens
        """The budget."""
        self.moves = 0
        """How often memory was laid out (anew): where it lies has changed then."""
        self._size = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes(self) -> int:
        """What has been laid out so far."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that has written before."""
        return self._layers[index]

    def reach(self, count: int) -> None:
        """Make sure that the first `count` places are there; what is stored stays."""
        if count > self._size:
            size = min(self.places, max(count, 2 * self._size, _FIRST_PLACES))
            # Layer by layer, so that only one is there twice; if memory ends, nothing is lost.
            for index, (keys, values) in self._layers.items():
                self.moves += 1
                self._layers[index] = (_grown(keys, size), _grown(values, size))
            self._size = size

    def claim(self, bytes_per_place: int, device: torch.device) -> None:
        """On CUDA take the whole budget at once, if half of what is free there is enough.

        Growing later would cost every recorded step, because those know where the memory lies.
        """
        if device.type != "cuda" or self._layers:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self.places * bytes_per_place <= free // 2:
            self._size = self.places

    def write(self, index: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store `key`, `value` [N, H, D] at `places` [N] of a layer, which must be there."""
        _, heads, width = key.shape
        self.lay_out(index, heads, width, key.dtype, key.device)
        for memory, states in zip(self._layers[index], (key, value), strict=True):
            memory.index_copy_(0, places, states)

    def lay_out(
        self, index: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Have the memory of a layer there, as large as that of the others."""
        if index in self._layers:
            return
        shape = (self._size, heads, width)
        keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self._layers[index] = (keys, values)
        self.moves += 1


def _grown(memory: Tensor, size: int) -> Tensor:
    if memory.shape[0] >= size:  # from an attempt that failed at a later layer
        return memory
    larger = torch.empty((size, *memory.shape[1:]), dtype=memory.dtype, device=memory.device)
    larger[: memory.shape[0]] = memory
    return larger


class StepCache(Cache):
    """The transformers cache of one step: new keys and values go to their places in the memory.

    What a token attends to is not handed back here but read by `attention.paged_attention`, since
    only that knows which tokens belong together.
    """

    def __init__(self, memory: KVMemory, places: Tensor) -> None:
        """`places` [N]: where the tokens of this step go."""
        super().__init__(layers=[])
        self._memory = memory
        self._places = {places.device: places}
        self._first = places

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [1, H, N, D] of a layer; returns them as they are."""
        device = key_states.device
        if device not in self._places:
            self._places[device] = self._first.to(device)
        key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        self._memory.write(layer_idx, self._places[device], key, value)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: a step has no common past; each token brings its own position."""
        return 0
