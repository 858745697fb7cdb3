"""Attention of the new tokens of one text over paged memory, where their keys and values are stored.

A program serves one query head and a tile of tokens, the latest first: they have the most to look
at. What lies before the whole tile is read without masks. Few new tokens would be few programs, each
with a long text to read, so the text is split into parts for them; the one that is done last puts
the parts together, in their order. Sizes of the text are read on the device and the launch depends
on shapes alone, so a graph may hold it.

Shape letters: N new tokens (those that fill up included), Q query heads, H key/value heads, D width
of a head, P places, W blocks, S parts, BM tokens of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.context import options, power_of_two, processors
from vip_llava.kernels.fused.lang import product, release_next, wait_previous
from vip_llava.kernels.fused.split_kv import EVER, NEVER, counters, last
from vip_llava.kernels.values import BLOCK_TOKENS

__all__ = ["paged_prompt"]

_MOST_PARTS = 8


@triton.jit
def _over(
    begin, end, stop, asked, at, keys, values, table, held, window, scale, high, total, found,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TOKENS: tl.constexpr, EDGE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The running maximum, total and result after the tokens from `begin` to `end`.

    EDGE: not every query sees all of them; `stop` is where the text ends.
    """
    n, d = tl.arange(0, BN), tl.arange(0, DP)
    inside = d < D
    for first in tl.range(begin, end, BN, num_stages=STAGES):
        token = first + n
        there = token < stop
        block = tl.load(table + token // TOKENS, mask=there, other=0)
        place = block.to(tl.int64) * TOKENS + token % TOKENS
        where = (place[:, None] * H + held) * D + d[None, :]
        mask = there[:, None] & inside[None, :]
        key = tl.load(keys + where, mask=mask, other=0.0)
        value = tl.load(values + where, mask=mask, other=0.0)
        score = product(asked, tl.trans(key), tl.zeros((BM, BN), tl.float32)) * scale
        if EDGE:
            behind = at[:, None] - token[None, :]
            seen = (behind >= 0) & (behind < window) & there[None, :]
            score = tl.where(seen, score, NEVER)
        higher = tl.maximum(high, tl.max(score, axis=1))
        fade = tl.exp2(high - higher)
        share = tl.exp2(score - higher[:, None])
        if EDGE:
            # Where nothing was seen so far the highest score is no score.
            share = tl.where(seen, share, 0.0)
        total = total * fade + tl.sum(share, axis=1)
        found = product(share.to(value.dtype), value, found * fade[:, None])
        high = higher
    return high, total, found


@triton.jit
def _merged(
    parts, most, weight, index, m, d, where, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """The parts of one tile of one head, weighed: [BM, DP] and their total [BM]."""
    high = tl.full((BM,), NEVER, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    found = tl.zeros((BM, DP), tl.float32)
    for part in tl.static_range(S):
        at = (index * S + part) * BM + m
        # Other processors wrote them: what is cached near this one may be older.
        some = tl.load(most + at, cache_modifier=".cg")
        of = tl.load(weight + at, cache_modifier=".cg")
        more = tl.load(parts + at[:, None] * D + d[None, :], mask=where, cache_modifier=".cg")
        higher = tl.maximum(high, some)
        fade, share = tl.exp2(high - higher), tl.exp2(some - higher)
        total = total * fade + of * share
        found = found * fade[:, None] + more * share[:, None]
        high = higher
    return total, found


@triton.jit
def _attend_prompt(
    q, keys, values, table, span, out, parts, most, weight, done, scale, window, q_row, N,
    Q: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, S: tl.constexpr, TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    held = head // (Q // H)
    start, length = tl.load(span), tl.load(span + 1)
    m, d = tl.arange(0, BM), tl.arange(0, DP)
    token = tile * BM + m
    at = start + token
    mask = (token < N)[:, None] & (d < D)[None, :]
    asked = tl.load(q + token[:, None] * q_row + head * D + d[None, :], mask=mask, other=0.0)
    first = start + tile * BM
    stop = tl.minimum(first + BM, length)
    if first >= length:  # a tile that only fills up
        stop = 0
    begin = 0
    whole = tl.minimum(first + 1, stop) // BN * BN
    if WINDOW:
        begin = tl.maximum(first + 1 - window, 0) // BN * BN
        whole = begin
    end = stop
    if S > 1:
        size = (tl.maximum(stop - begin, 0) + S * BN - 1) // (S * BN) * BN
        begin += tl.program_id(2) * size
        end = tl.minimum(begin + size, stop)
        whole = tl.minimum(tl.maximum(whole, begin), end)
    high = tl.full((BM,), NEVER, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    found = tl.zeros((BM, DP), tl.float32)
    high, total, found = _over(
        begin, whole, stop, asked, at, keys, values, table, held, window, scale, high, total, found,
        H, D, DP, BM, BN, TOKENS, False, STAGES,
    )  # fmt: skip
    high, total, found = _over(
        whole, end, stop, asked, at, keys, values, table, held, window, scale, high, total, found,
        H, D, DP, BM, BN, TOKENS, True, STAGES,
    )  # fmt: skip
    to = (token[:, None] * Q + head) * D + d[None, :]
    if S == 1:
        found = found / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + to, found.to(out.dtype.element_ty), mask=mask)
    else:
        index = tile * Q + head
        mine = (index * S + tl.program_id(2)) * BM + m
        tl.store(most + mine, high)
        tl.store(weight + mine, total)
        where = (m < BM)[:, None] & (d < D)[None, :]
        tl.store(parts + mine[:, None] * D + d[None, :], found, mask=where)
        if last(done + index, S):
            total, found = _merged(parts, most, weight, index, m, d, where, D, DP, BM, S)
            found = found / tl.where(total > 0, total, 1.0)[:, None]
            tl.store(out + to, found.to(out.dtype.element_ty), mask=mask)


def _parts(programs: int, room: int, tile: int, device: torch.device) -> int:
    """Into how many parts a text of at most `room` tokens is split, a power of two: two programs for
    each processor can wait side by side."""
    wanted = min(2 * processors(device) // programs, -(-room // tile), _MOST_PARTS)
    return 1 << (max(1, wanted).bit_length() - 1)


def paged_prompt(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    span: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of new tokens of one text, whose keys and values are stored: [N, Q, D]."""
    count, heads, width = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    wide = query.element_size() > 2
    rows = min(32 if wide else 64, max(16, power_of_two(count)))
    tile, tiles = 32 if wide else 64, triton.cdiv(count, rows)
    parts = _parts(heads * tiles, len(table) * BLOCK_TOKENS, tile, query.device)
    partial, most, weight, done = out, out, out, span
    if parts > 1:
        partial = query.new_empty((tiles * heads * parts, rows, width), dtype=torch.float32)
        most, weight = query.new_empty((2, tiles * heads * parts, rows), dtype=torch.float32)
        done = counters(tiles * heads, query.device)
    _attend_prompt[(heads, tiles, parts)](
        query, keys, values, table, span, out, partial, most, weight, done,
        scale * 1.4426950408889634, window or EVER, query.stride(0), count,
        Q=heads, H=keys.shape[1], D=width, DP=power_of_two(width), BM=rows, BN=tile, S=parts,
        TOKENS=BLOCK_TOKENS, WINDOW=window is not None, STAGES=3, num_warps=4,
        **options(query.device),
    )  # fmt: skip
    return out
