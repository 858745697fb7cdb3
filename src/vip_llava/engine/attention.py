"""Attention of one step over the paged KV cache: each sequence sees its own tokens only.

The tokens of a step stand in one row without padding: one token of each decoding sequence, a chunk
of the prompt of each that is prefilled. `plan_step` decides once for a step which slots are attended
to together; `paged_attention` is what transformers' models call in every layer, under the name
`PAGED_ATTENTION`. It uses scaled dot product attention only, so it runs on any device.

This module knows transformers' attention interface and slots, no requests and no model.
Shape letters: N tokens of the step, R sequences of a group, L slots attended to, Q query heads,
H key/value heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, PreTrainedModel

from vip_llava.engine.device_transfer import to_device_async
from vip_llava.engine.kv_cache import KVCache

__all__ = [
    "PAGED_ATTENTION",
    "Chunk",
    "StepPlan",
    "attend",
    "paged",
    "paged_attention",
    "plan_step",
]

PAGED_ATTENTION = "vip_llava_paged"
"""Name under which transformers' models find `paged_attention`."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence: `count` of them after `start` that are in the KV cache.

    slots: [start + count], of all its tokens, on the CPU.
    first: the first slot, if the slots are contiguous; then nothing needs to be gathered.
    """

    start: int
    count: int
    slots: Tensor
    first: int | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """Tokens `begin` to `end` of the step that are attended to together.

    Several sequences with one new token each, or one sequence with any number of them.
    """

    begin: int
    end: int
    starts: list[int]
    """Tokens in the cache before each sequence's new ones."""
    length: int
    """The longest L."""
    slots: Tensor
    """[R, L], padded with the sequence's own first slot, which the mask hides. Another slot could
    hold values that are not finite, and those survive any mask."""
    first: int | None
    on_device: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def decodes(self) -> bool:
        """Whether each sequence has one new token."""
        return self.end - self.begin == len(self.starts)

    def slots_on(self, device: torch.device) -> Tensor:
        if device not in self.on_device:
            self.on_device[device] = to_device_async(self.slots, device)
        return self.on_device[device]

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Which slots each query sees: [R, 1, 1, L], for a chunk [1, 1, tokens, L]; None: all."""
        seen = self.length if window is None else min(window, self.length)
        whole = self.decodes and all(start + 1 == self.length for start in self.starts)
        if whole and seen == self.length:
            return None
        if (seen, device) not in self.on_device:
            tokens = 1 if self.decodes else self.end - self.begin
            query = torch.tensor(self.starts).unsqueeze(1) + torch.arange(tokens)
            distance = query.unsqueeze(2) - torch.arange(self.length)
            mask = (distance >= 0) & (distance < seen)
            self.on_device[seen, device] = to_device_async(mask.unsqueeze(1), device)
        return self.on_device[seen, device]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Which tokens attend to which slots in a step; made by `plan_step`."""

    kv_cache: KVCache
    groups: tuple[_Group, ...]
    slot_mapping: Tensor
    """[N]: the slots of the new tokens."""
    positions: Tensor
    """[1, N]: the position of each new token in its sequence."""


def plan_step(kv_cache: KVCache, chunks: Sequence[Chunk], device: torch.device) -> StepPlan:
    """The plan of a step whose tokens are those of `chunks`, one after the other.

    Neighbouring chunks of one token are attended to together if their lengths are of the same
    order of magnitude: sorted by length, little is wasted on padding.
    """
    groups: list[_Group] = []
    begin = 0
    pending: list[Chunk] = []

    def close() -> None:
        if pending:
            groups.append(_group(begin - len(pending), pending))
            pending.clear()

    for chunk in chunks:
        alike = pending and pending[-1].start.bit_length() == chunk.start.bit_length()
        if chunk.count > 1 or not alike:
            close()
        if chunk.count == 1:
            pending.append(chunk)
        else:
            groups.append(_group(begin, [chunk]))
        begin += chunk.count
    close()
    kv_cache.reserve(max(int(chunk.slots.max()) for chunk in chunks) + 1)
    new = [chunk.slots[chunk.start :] for chunk in chunks]
    positions = [torch.arange(chunk.start, chunk.start + chunk.count) for chunk in chunks]
    return StepPlan(
        kv_cache,
        tuple(groups),
        to_device_async(torch.cat(new), device),
        to_device_async(torch.cat(positions).unsqueeze(0), device),
    )


def _group(begin: int, chunks: Sequence[Chunk]) -> _Group:
    length = max(chunk.start + chunk.count for chunk in chunks)
    slots = torch.empty(len(chunks), length, dtype=torch.long)
    for row, chunk in enumerate(chunks):
        end = chunk.start + chunk.count
        slots[row, :end] = chunk.slots
        slots[row, end:] = chunk.slots[0]
    return _Group(
        begin=begin,
        end=begin + sum(chunk.count for chunk in chunks),
        starts=[chunk.start for chunk in chunks],
        length=length,
        slots=slots,
        first=chunks[0].first if len(chunks) == 1 else None,
    )


@contextmanager
def paged(decoder: PreTrainedModel) -> Iterator[None]:
    """Let the language model attend with `paged_attention` inside the context."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention)
    config: Any = decoder.config
    before = config._attn_implementation
    # No mask function has this name, so transformers makes no mask of N x N.
    config._attn_implementation = PAGED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    step_plan: StepPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a step: query [1, Q, N, D], key and value [1, H, N, D] -> [1, N, Q, D].

    The new keys and values must be in the plan's cache already (`StepCache` stores them there).
    """
    assert step_plan is not None, "paged attention needs the plan of the step"
    index: Any = module.layer_idx
    found = attend(step_plan, index, query[0].transpose(0, 1), scaling, sliding_window)
    return found.unsqueeze(0), None


def attend(
    step: StepPlan,
    layer: int,
    query: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention of a step in one layer, whose new keys and values are in the plan's cache.

    query [N, Q, D] -> [N, Q, D].
    """
    keys, values = step.kv_cache.layer(layer)
    parts = [
        _attend(group, query, _read(group, keys), _read(group, values), scaling, sliding_window)
        for group in step.groups
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read(group: _Group, memory: Tensor) -> Tensor:
    """What a group attends to: [R, H, L, D]; a view if the slots are contiguous."""
    if group.first is not None:
        found = memory[group.first : group.first + group.length].unsqueeze(0)
    else:
        slots = group.slots_on(memory.device)
        # On a CPU it takes a third of the time of an index with two dimensions.
        found = memory.index_select(0, slots.flatten()).view(*slots.shape, *memory.shape[1:])
    return found.transpose(1, 2)


def _attend(
    group: _Group,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """The group's part of the result: [tokens, Q, D]."""
    query = query[group.begin : group.end]
    tokens, heads, width = query.shape
    kv_heads = keys.shape[1]
    if group.decodes:
        # Query heads that share a key head stand in for its queries: nothing is repeated.
        query = query.view(tokens, kv_heads, heads // kv_heads, width)
        mask = group.mask(window, query.device)
        found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        return found.reshape(tokens, heads, found.shape[-1])
    if heads != kv_heads:
        keys = keys.repeat_interleave(heads // kv_heads, dim=1)
        values = values.repeat_interleave(heads // kv_heads, dim=1)
    whole = group.starts[0] == 0 and (window is None or window >= group.length)
    if whole:
        mask = None
    elif window is None and query.is_cuda:
        # CUDA kernels know this bias and read no mask.
        mask = causal_lower_right(tokens, group.length)
    else:
        mask = group.mask(window, query.device)
    found = F.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0), keys, values,
        attn_mask=mask, is_causal=whole, scale=scaling,
    )  # fmt: skip
    return found[0].transpose(0, 1)
