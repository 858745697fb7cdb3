"""Keys and values of all layers, in slots that block tables point to.

This module knows neither sequences nor models; it sees shapes when a layer first writes.
Shape letters: P slots (blocks x tokens of a block), N tokens of a step, H key/value heads, D width
of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from vip_llava.kernels import BLOCK_SIZE

__all__ = ["KVCache", "StepCache"]

_INITIAL_SLOTS = 1024


class KVCache:
    """Keys and values [P, H, D] of every layer, allocated as far as slots are in use.

    The memory grows by doubling up to its limit, so that a small machine that answers one request
    does not pay for many. Each layer's memory is on the layer's device, so a model may be spread
    over several.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_slots = num_blocks * BLOCK_SIZE
        """The limit."""
        self.generation = 0
        """Changes whenever memory was (re)allocated; graphs over the old addresses are invalid."""
        self._size = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Memory allocated so far."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of an allocated layer."""
        return self._layers[index]

    def reserve(self, count: int) -> None:
        """Make sure that the first `count` slots exist; what is stored is kept."""
        if count > self._size:
            size = min(self.num_slots, max(count, 2 * self._size, _INITIAL_SLOTS))
            # Layer by layer: only one is in memory twice, and running out of it loses nothing.
            for index, (keys, values) in self._layers.items():
                self.generation += 1
                self._layers[index] = (_grown(keys, size), _grown(values, size))
            self._size = size

    def preallocate(self, bytes_per_slot: int, device: torch.device) -> None:
        """On CUDA, plan for the whole limit if that takes at most half of the free memory.

        Growing later invalidates every captured graph.
        """
        if device.type != "cuda" or self._layers:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self.num_slots * bytes_per_slot <= free // 2:
            self._size = self.num_slots

    def write(self, index: int, slot_mapping: Tensor, key: Tensor, value: Tensor) -> None:
        """Store `key`, `value` [N, H, D] of a layer in the slots [N], which must exist."""
        _, heads, width = key.shape
        self.allocate_layer(index, heads, width, key.dtype, key.device)
        for memory, states in zip(self._layers[index], (key, value), strict=True):
            memory.index_copy_(0, slot_mapping, states)

    def allocate_layer(
        self, index: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate the memory of a layer, as large as that of the others, if it is not there."""
        if index not in self._layers:
            shape = (self._size, heads, width)
            keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            self._layers[index] = (keys, values)
            self.generation += 1


def _grown(memory: Tensor, size: int) -> Tensor:
    if memory.shape[0] >= size:  # from an attempt that failed at a later layer
        return memory
    larger = torch.empty((size, *memory.shape[1:]), dtype=memory.dtype, device=memory.device)
    larger[: memory.shape[0]] = memory
    return larger


class StepCache(Cache):
    """The transformers cache of one step: stores new keys and values in the slots of the KV cache.

    It does not return what a token attends to: `attention.paged_attention` reads that, since only
    the step's plan says which tokens belong together.
    """

    def __init__(self, kv_cache: KVCache, slot_mapping: Tensor) -> None:
        """`slot_mapping` [N]: the slots of the step's tokens."""
        super().__init__(layers=[])
        self._kv_cache = kv_cache
        self._slots = {slot_mapping.device: slot_mapping}
        self._slot_mapping = slot_mapping

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [1, H, N, D] of a layer; returns the arguments."""
        device = key_states.device
        if device not in self._slots:
            self._slots[device] = self._slot_mapping.to(device)
        key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        self._kv_cache.write(layer_idx, self._slots[device], key, value)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: the sequences of a step have no common past; each token has its own position."""
        return 0
