"""Attention of one step over paged KV memory: every request sees its own tokens and no other's.

The tokens of a step stand in one row without padding: one token for each request that is being
answered, a piece of the prompt for each that is being read. `plan` says once for a step who
attends to which places; `paged_attention` is what transformers' models call in every layer, under
the name `PAGED_ATTENTION`. Only the standard scaled dot product is used, so it runs on any device.

This module knows transformers' attention interface and places in memory, no requests and no model.
Shape letters: N tokens of the step, R requests of a group, L places attended to, Q query heads,
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

from vip_llava.engine.block_manager import KVMemory
from vip_llava.engine.device_transfer import sent

__all__ = ["PAGED_ATTENTION", "Piece", "StepPlan", "attend", "paged", "paged_attention", "plan"]

PAGED_ATTENTION = "vip_llava_paged"
"""Name under which transformers' models find `paged_attention`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of one request: `count` of them after `start` that are in the memory.

    `places`: where its tokens lie, in order, at least `start + count` of them (on the CPU).
    `first`: the first place, if all lie one after the other; then nothing needs to be gathered.
    """

    start: int
    count: int
    places: Tensor
    first: int | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """Tokens `begin` to `end` of the step that are attended to together.

    Several requests with one new token each, or one request with any number of them.
    """

    begin: int
    end: int
    starts: list[int]
    """Tokens in the memory before each request's new ones."""
    length: int
    """The longest L."""
    places: Tensor
    """[R, L]; filled up with a request's own first place, which the mask then hides: a neighbour's
    could hold numbers that are not finite, and those survive any mask."""
    first: int | None
    made: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether each request has one new token."""
        return self.end - self.begin == len(self.starts)

    def places_on(self, device: torch.device) -> Tensor:
        if device not in self.made:
            self.made[device] = sent(self.places, device)
        return self.made[device]

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Which places each query may see: [R, 1, 1, L], for a piece [1, 1, tokens, L]."""
        seen = self.length if window is None else min(window, self.length)
        whole = self.single and all(start + 1 == self.length for start in self.starts)
        if whole and seen == self.length:
            return None
        if (seen, device) not in self.made:
            tokens = 1 if self.single else self.end - self.begin
            query = torch.tensor(self.starts).unsqueeze(1) + torch.arange(tokens)
            distance = query.unsqueeze(2) - torch.arange(self.length)
            mask = (distance >= 0) & (distance < seen)
            self.made[seen, device] = sent(mask.unsqueeze(1), device)
        return self.made[seen, device]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Who attends to what in a step; made by `plan`."""

    memory: KVMemory
    groups: tuple[_Group, ...]
    places: Tensor
    """[N]: where the new tokens go."""
    positions: Tensor
    """[1, N]: the place of each new token in its own text."""


def plan(memory: KVMemory, pieces: Sequence[Piece], device: torch.device) -> StepPlan:
    """The plan of a step whose tokens are those of `pieces`, one after the other.

    Neighbouring pieces of one token are attended to together as long as their lengths are of the
    same order: sort them by length, and little is wasted on filling up.
    """
    groups: list[_Group] = []
    begin = 0
    pending: list[Piece] = []

    def close() -> None:
        if pending:
            groups.append(_group(begin - len(pending), pending))
            pending.clear()

    for piece in pieces:
        alike = pending and pending[-1].start.bit_length() == piece.start.bit_length()
        if piece.count > 1 or not alike:
            close()
        if piece.count == 1:
            pending.append(piece)
        else:
            groups.append(_group(begin, [piece]))
        begin += piece.count
    close()
    memory.reach(max(int(piece.places[: piece.start + piece.count].max()) for piece in pieces) + 1)
    new = [piece.places[piece.start : piece.start + piece.count] for piece in pieces]
    positions = [torch.arange(piece.start, piece.start + piece.count) for piece in pieces]
    return StepPlan(
        memory,
        tuple(groups),
        sent(torch.cat(new), device),
        sent(torch.cat(positions).unsqueeze(0), device),
    )


def _group(begin: int, pieces: Sequence[Piece]) -> _Group:
    length = max(piece.start + piece.count for piece in pieces)
    places = torch.empty(len(pieces), length, dtype=torch.long)
    for row, piece in enumerate(pieces):
        end = piece.start + piece.count
        places[row, :end] = piece.places[:end]
        places[row, end:] = piece.places[0]
    return _Group(
        begin=begin,
        end=begin + sum(piece.count for piece in pieces),
        starts=[piece.start for piece in pieces],
        length=length,
        places=places,
        first=pieces[0].first if len(pieces) == 1 else None,
    )


@contextmanager
def paged(decoder: PreTrainedModel) -> Iterator[None]:
    """Within, the language model attends with `paged_attention`; afterwards as before."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention)
    config: Any = decoder.config
    before = config._attn_implementation
    # No mask function goes by this name, so transformers makes no mask of N x N places.
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

    The new keys and values must be in the plan's memory already (`kv.StepCache` puts them there).
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
    """Attention of a step in one layer, whose new keys and values are in the plan's memory.

    query [N, Q, D] -> [N, Q, D].
    """
    keys, values = step.memory.layer(layer)
    parts = [
        _attend(group, query, _read(group, keys), _read(group, values), scaling, sliding_window)
        for group in step.groups
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read(group: _Group, memory: Tensor) -> Tensor:
    """What a group attends to: [R, H, L, D]; a view where the places allow it."""
    if group.first is not None:
        found = memory[group.first : group.first + group.length].unsqueeze(0)
    else:
        places = group.places_on(memory.device)
        # A third of the time of an index with two dimensions, on a CPU.
        found = memory.index_select(0, places.flatten()).view(*places.shape, *memory.shape[1:])
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
    asked = query[group.begin : group.end]
    tokens, heads, width = asked.shape
    held = keys.shape[1]
    if group.single:
        # The query heads that share a key head stand in for its queries: nothing is repeated.
        asked = asked.view(tokens, held, heads // held, width)
        mask = group.mask(window, query.device)
        found = F.scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scaling)
        return found.reshape(tokens, heads, found.shape[-1])
    if heads != held:
        keys = keys.repeat_interleave(heads // held, dim=1)
        values = values.repeat_interleave(heads // held, dim=1)
    whole = group.starts[0] == 0 and (window is None or window >= group.length)
    if whole:
        mask = None
    elif window is None and query.is_cuda:
        # The rest of a text: kernels there know this shape and read no mask.
        mask = causal_lower_right(tokens, group.length)
    else:
        mask = group.mask(window, query.device)
    found = F.scaled_dot_product_attention(
        asked.transpose(0, 1).unsqueeze(0),
        keys,
        values,
        attn_mask=mask,
        is_causal=whole,
        scale=scaling,
    )
    return found[0].transpose(0, 1)
