"""Attention of one new token a request over paged memory: split over the length, then combined.

A program serves one key head of one request and one part of its text. The part that ends with the
new token turns and stores its key and value on the way, and the program that is done last weighs the
parts, in their order, so that neither needs a launch of its own.
Nothing is read on the host, and the parts' number is fixed by the shapes, so a graph may hold it.

Shape letters: R requests, Q query heads, H key/value heads, D width of a head, P places, W blocks
of a request, S parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused import tuned_configs as choices
from vip_llava.kernels.fused.context import options, power_of_two, processors
from vip_llava.kernels.fused.lang import product, release_next, turned, wait_previous
from vip_llava.kernels.fused.split_kv import EVER, NEVER, combine, counters, last, part_of, tile
from vip_llava.kernels.values import BLOCK_TOKENS

__all__ = ["paged_decode", "paged_step"]


@triton.jit
def _with(high, total, found, asked, key, value, seen):
    """The running maximum, total and result of every slot with one tile more."""
    score = tl.sum(key.to(tl.float32) * asked[None, :], axis=1)
    score = tl.where(seen, score, NEVER)
    higher = tl.maximum(high, score)
    fade = tl.exp(high - higher)
    share = tl.where(seen, tl.exp(score - higher), 0.0)
    found = found * fade[:, None] + share[:, None] * value.to(tl.float32)
    return higher, total * fade + share, found


@triton.jit
def _attend_one(
    q, k, v, cos, sin, keys, values, places, table, lengths, out, parts, most, weight, done,
    scale, window, q_row, k_row, v_row, table_row,
    Q: tl.constexpr, H: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    S: tl.constexpr, BL: tl.constexpr, TOKENS: tl.constexpr, NEW: tl.constexpr, AHEAD: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """As many key heads as query heads: products of vectors. Every slot of a tile keeps its own
    running maximum, so that nothing is exchanged between threads before the end."""
    release_next(OVERLAP)
    if not NEW:  # the kernel before may have stored what is read here
        wait_previous(OVERLAP)
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, first, begin, end = part_of(lengths, row, part, S, BL, window)
    owns = (begin < length) & (end == length)
    if NEW:
        end = tl.minimum(end, length - 1)
    d, slot = tl.arange(0, DP), tl.arange(0, BL)
    inside = d < D
    # The first tiles are asked for before the new token is known.
    blocks = table + row * table_row
    key, value, seen = tile(keys, values, blocks, head, begin, first, end, d, slot, H, D, TOKENS)
    key_1, value_1, seen_1, key_2, value_2, seen_2 = key, value, seen, key, value, seen
    if AHEAD:
        key_1, value_1, seen_1 = tile(
            keys, values, blocks, head, begin + BL, first, end, d, slot, H, D, TOKENS
        )
        key_2, value_2, seen_2 = tile(
            keys, values, blocks, head, begin + 2 * BL, first, end, d, slot, H, D, TOKENS
        )
    if NEW:
        wait_previous(OVERLAP)
        turns = row * D
        asked = turned(q, cos + turns, sin + turns, row * q_row + head * D, d, D, inside)
        # As the memory would have it, and the plain kernels.
        asked = asked.to(q.dtype.element_ty).to(tl.float32) * scale
        new_key = turned(k, cos + turns, sin + turns, row * k_row + head * D, d, D, inside)
        new_key = new_key.to(keys.dtype.element_ty)
        new_value = tl.load(v + row * v_row + head * D + d, mask=inside, other=0.0)
        home = tl.load(places + row).to(tl.int64)
        to = (home * H + head) * D + d
        writes = tl.where(owns & (home >= 0), inside, d < 0)
        tl.store(keys + to, new_key, mask=writes)
        tl.store(values + to, new_value.to(values.dtype.element_ty), mask=writes)
    else:
        asked = tl.load(q + row * q_row + head * D + d, mask=inside, other=0.0).to(tl.float32)
        asked = asked * scale
    high = tl.where(seen, tl.sum(key.to(tl.float32) * asked[None, :], axis=1), NEVER)
    total = tl.where(seen, 1.0, 0.0)
    found = total[:, None] * value.to(tl.float32)
    rest = begin + BL
    if AHEAD:
        high, total, found = _with(high, total, found, asked, key_1, value_1, seen_1)
        high, total, found = _with(high, total, found, asked, key_2, value_2, seen_2)
        rest += 2 * BL
    for at in tl.range(rest, end, BL, num_stages=STAGES):
        key, value, seen = tile(keys, values, blocks, head, at, first, end, d, slot, H, D, TOKENS)
        high, total, found = _with(high, total, found, asked, key, value, seen)
    if NEW:
        # Last, so that nothing of it comes before the reading of what is there.
        mine = owns & (slot == 0)
        own = tl.where(mine, tl.sum(new_key.to(tl.float32) * asked, axis=0), NEVER)
        higher = tl.maximum(high, own)
        fade = tl.exp(high - higher)
        share = tl.where(mine, tl.exp(own - higher), 0.0)
        total = total * fade + share
        found = found * fade[:, None] + share[:, None] * new_value.to(tl.float32)[None, :]
        high = higher
    top = tl.max(high, axis=0)
    fade = tl.exp(high - top)
    total_all = tl.sum(total * fade, axis=0)
    sum_all = tl.sum(found * fade[:, None], axis=0)
    index = row * Q + head
    if S == 1:
        result = sum_all / tl.where(total_all > 0, total_all, 1.0)
        tl.store(out + index * D + d, result.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(parts + (index * S + part) * D + d, sum_all, mask=inside)
        tl.store(most + index * S + part, top)
        tl.store(weight + index * S + part, total_all)
        if last(done + index, S):
            combine(parts, most, weight, out, index, D, DP, S)


@triton.jit
def _attend_group(
    q, k, v, cos, sin, keys, values, places, table, lengths, out, parts, most, weight, done,
    scale, window, q_row, k_row, v_row, table_row,
    Q: tl.constexpr, H: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    S: tl.constexpr, BL: tl.constexpr, TOKENS: tl.constexpr, NEW: tl.constexpr, AHEAD: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Several query heads share a key head: matrix products of at least 16 rows."""
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    row, held, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, first, begin, end = part_of(lengths, row, part, S, BL, window)
    G: tl.constexpr = Q // H
    d, slot, g = tl.arange(0, DP), tl.arange(0, BL), tl.arange(0, GP)
    inside = d < D
    heads = held * G + g
    there = (g < G)[:, None] & inside[None, :]
    at_q = row * q_row + heads[:, None] * D
    kind = keys.dtype.element_ty
    high = tl.full((GP,), NEVER, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    found = tl.zeros((GP, DP), tl.float32)
    if NEW:
        turns = row * D
        asked = turned(q, cos + turns, sin + turns, at_q, d[None, :], D, there).to(kind)
        new_key = turned(k, cos + turns, sin + turns, row * k_row + held * D, d, D, inside)
        new_key = new_key.to(kind)
        new_value = tl.load(v + row * v_row + held * D + d, mask=inside, other=0.0)
        owns = (begin < length) & (end == length)
        home = tl.load(places + row).to(tl.int64)
        to = (home * H + held) * D + d
        writes = tl.where(owns & (home >= 0), inside, d < 0)
        tl.store(keys + to, new_key, mask=writes)
        tl.store(values + to, new_value.to(values.dtype.element_ty), mask=writes)
        own = tl.sum(asked.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scale
        high = tl.where(owns, own, high)
        total = tl.where(owns, 1.0, total)
        found = tl.where(owns, new_value.to(tl.float32)[None, :], found)
        end = tl.minimum(end, length - 1)
    else:
        asked = tl.load(q + at_q + d[None, :], mask=there, other=0.0).to(kind)
    blocks = table + row * table_row
    for at in tl.range(begin, end, BL, num_stages=STAGES):
        key, value, seen = tile(keys, values, blocks, held, at, first, end, d, slot, H, D, TOKENS)
        score = product(asked, tl.trans(key), tl.zeros((GP, BL), tl.float32)) * scale
        score = tl.where(seen[None, :], score, NEVER)
        higher = tl.maximum(high, tl.max(score, axis=1))
        fade = tl.exp(high - higher)
        share = tl.where(seen[None, :], tl.exp(score - higher[:, None]), 0.0)
        total = total * fade + tl.sum(share, axis=1)
        found = product(share.to(kind), value, found * fade[:, None])
        high = higher
    index = row * Q + heads
    if S == 1:
        found = found / tl.where(total > 0, total, 1.0)[:, None]
        to = index[:, None] * D + d[None, :]
        tl.store(out + to, found.to(out.dtype.element_ty), mask=there)
    else:
        tl.store(most + index * S + part, high, mask=g < G)
        tl.store(weight + index * S + part, total, mask=g < G)
        to = (index * S + part)[:, None] * D + d[None, :]
        tl.store(parts + to, found, mask=there)
        if last(done + row * Q + held, S):
            for one in range(G):
                combine(parts, most, weight, out, row * Q + held * G + one, D, DP, S)


def _parts(requests: int, heads: int, held: int, room: int, tile: int, device: torch.device) -> int:
    """Into how many parts a text is split: enough programs for the device, and no empty parts."""
    most = max(1, min(-(-room // tile), 16))
    if heads > held:
        return min(
            power_of_two(-(-3 * processors(device) // (requests * held))), power_of_two(most)
        )
    # Two for each processor can wait side by side with what they read ahead.
    wanted = -(-2 * processors(device) // (requests * held))
    return 1 << (min(wanted, most).bit_length() - 1)


def _attend(
    query: Tensor,
    new: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None,
    memory: tuple[Tensor, Tensor],
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """`new`: key, value, cos, sin and places of the new tokens, if they are not stored yet."""
    requests, heads, width = query.shape
    keys, values = memory
    held = keys.shape[1]
    key, value, cos, sin, places = new or (query, query, query, query, lengths)
    setting = choices.attention_setting(heads > held)
    room = table.shape[1] * BLOCK_TOKENS
    parts = setting.parts or _parts(requests, heads, held, room, setting.tile, query.device)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    partial, most, weight, done = out, out, out, lengths
    if parts > 1:
        partial = query.new_empty((requests, heads, parts, width), dtype=torch.float32)
        most, weight = query.new_empty((2, requests, heads, parts), dtype=torch.float32)
        done = counters(requests * heads, query.device)
    (_attend_one if heads == held else _attend_group)[(requests, held, parts)](
        query, key, value, cos, sin, keys, values, places, table, lengths, out,
        partial, most, weight, done, scale, window or EVER,
        query.stride(0), key.stride(0), value.stride(0), table.stride(0),
        Q=heads, H=held, GP=max(16, power_of_two(heads // held)),
        D=width, DP=power_of_two(width), S=parts, BL=setting.tile, TOKENS=BLOCK_TOKENS,
        NEW=new is not None, AHEAD=parts >= 4, STAGES=setting.stages, num_warps=setting.warps,
        **options(query.device),
    )  # fmt: skip
    return out


def paged_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of one new token of each request over its own places: [R, Q, D]."""
    return _attend(query, None, (keys, values), table, lengths, scale, window)


def paged_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """`rotate_and_store`, then `paged_decode` with what it gives, in one kernel.

    Where a place is negative the row's output is finite and means nothing.
    """
    new = (k, v, cos, sin, places)
    return _attend(q, new, (keys, values), table, lengths, scale, window)
