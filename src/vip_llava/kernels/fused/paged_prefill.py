"""Causal attention of the new tokens of one sequence over the paged KV cache.

A program serves one query head and a tile of tokens, the latest tile first: it has the most to read.
What lies before the whole tile is read without masks. Few new tokens would make few programs, each
with a long sequence to read, so it is split for them; the program that finishes last combines the
splits, in their order. Lengths are read on the device and the launch depends on shapes alone, so a
graph can hold it.

Shape letters: N new tokens (padding included), Q query heads, H key/value heads, D width of a head,
P slots, W blocks, S splits, BM tokens of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.lang import dot, release_next, wait_previous
from vip_llava.kernels.fused.launch import num_processors, options, power_of_two
from vip_llava.kernels.fused.split_kv import NEVER, counters, is_last_split
from vip_llava.kernels.values import BLOCK_SIZE, PrefillChunk

__all__ = ["prefill_attention"]

_MAX_SPLITS = 8
_LOG2_E = 1.4426950408889634


@triton.jit
def _attend_range(
    begin, end, stop, query, at, keys, values, table, kv_head, scale, peak, total, acc,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The running maximum, total and result after the tokens from `begin` to `end`.

    CAUSAL: not every query sees all of them; `stop` is where the sequence ends.
    """
    n, d = tl.arange(0, BN), tl.arange(0, DP)
    inside = d < D
    for first in tl.range(begin, end, BN, num_stages=STAGES):
        token = first + n
        valid = token < stop
        block = tl.load(table + token // BLOCK, mask=valid, other=0)
        slot = block.to(tl.int64) * BLOCK + token % BLOCK
        where = (slot[:, None] * H + kv_head) * D + d[None, :]
        mask = valid[:, None] & inside[None, :]
        key = tl.load(keys + where, mask=mask, other=0.0)
        value = tl.load(values + where, mask=mask, other=0.0)
        score = dot(query, tl.trans(key), tl.zeros((BM, BN), tl.float32)) * scale
        if CAUSAL:
            seen = (at[:, None] >= token[None, :]) & valid[None, :]
            score = tl.where(seen, score, NEVER)
        higher = tl.maximum(peak, tl.max(score, axis=1))
        decay = tl.exp2(peak - higher)
        p = tl.exp2(score - higher[:, None])
        if CAUSAL:
            # Where nothing was seen so far the maximum is not a score.
            p = tl.where(seen, p, 0.0)
        total = total * decay + tl.sum(p, axis=1)
        acc = dot(p.to(value.dtype), value, acc * decay[:, None])
        peak = higher
    return peak, total, acc


@triton.jit
def _combined(
    partial, peaks, totals, index, m, d, mask, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """The weighted splits of one tile of one head: total [BM] and result [BM, DP]."""
    peak = tl.full((BM,), NEVER, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DP), tl.float32)
    for split in tl.static_range(S):
        at = (index * S + split) * BM + m
        # Other multiprocessors wrote them: the L1 cache of this one may be stale.
        other = tl.load(peaks + at, cache_modifier=".cg")
        of = tl.load(totals + at, cache_modifier=".cg")
        more = tl.load(partial + at[:, None] * D + d[None, :], mask=mask, cache_modifier=".cg")
        higher = tl.maximum(peak, other)
        decay, weight = tl.exp2(peak - higher), tl.exp2(other - higher)
        total = total * decay + of * weight
        acc = acc * decay[:, None] + more * weight[:, None]
        peak = higher
    return total, acc


@triton.jit
def _attend_prefill(
    q, keys, values, table, span, out, partial, peaks, totals, done, scale, q_row, N,
    Q: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    kv_head = head // (Q // H)
    start, length = tl.load(span), tl.load(span + 1)
    m, d = tl.arange(0, BM), tl.arange(0, DP)
    token = tile * BM + m
    at = start + token
    mask = (token < N)[:, None] & (d < D)[None, :]
    query = tl.load(q + token[:, None] * q_row + head * D + d[None, :], mask=mask, other=0.0)
    first = start + tile * BM
    stop = tl.minimum(first + BM, length)
    if first >= length:  # a tile of padding
        stop = 0
    begin = 0
    whole = tl.minimum(first + 1, stop) // BN * BN  # every query sees what is before
    end = stop
    if S > 1:
        size = (stop + S * BN - 1) // (S * BN) * BN
        begin += tl.program_id(2) * size
        end = tl.minimum(begin + size, stop)
        whole = tl.minimum(tl.maximum(whole, begin), end)
    peak = tl.full((BM,), NEVER, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DP), tl.float32)
    peak, total, acc = _attend_range(
        begin, whole, stop, query, at, keys, values, table, kv_head, scale, peak, total, acc,
        H, D, DP, BM, BN, BLOCK, False, STAGES,
    )  # fmt: skip
    peak, total, acc = _attend_range(
        whole, end, stop, query, at, keys, values, table, kv_head, scale, peak, total, acc,
        H, D, DP, BM, BN, BLOCK, True, STAGES,
    )  # fmt: skip
    to = (token[:, None] * Q + head) * D + d[None, :]
    if S == 1:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + to, acc.to(out.dtype.element_ty), mask=mask)
    else:
        index = tile * Q + head
        row = (index * S + tl.program_id(2)) * BM + m
        tl.store(peaks + row, peak)
        tl.store(totals + row, total)
        within = (m < BM)[:, None] & (d < D)[None, :]
        tl.store(partial + row[:, None] * D + d[None, :], acc, mask=within)
        if is_last_split(done + index, S):
            total, acc = _combined(partial, peaks, totals, index, m, d, within, D, DP, BM, S)
            acc = acc / tl.where(total > 0, total, 1.0)[:, None]
            tl.store(out + to, acc.to(out.dtype.element_ty), mask=mask)


def _num_splits(programs: int, capacity: int, tile: int, device: torch.device) -> int:
    """Splits of a sequence of up to `capacity` tokens, a power of two: two programs for each
    multiprocessor."""
    wanted = min(2 * num_processors(device) // programs, -(-capacity // tile), _MAX_SPLITS)
    return 1 << (max(1, wanted).bit_length() - 1)


def prefill_attention(
    query: Tensor, cache: tuple[Tensor, Tensor], chunk: PrefillChunk, scale: float
) -> Tensor:
    """Causal attention of the new tokens of one sequence: [N, Q, D]."""
    count, heads, width = query.shape
    table = chunk.block_table
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    wide = query.element_size() > 2
    rows = min(32 if wide else 64, max(16, power_of_two(count)))
    tile, tiles = 32 if wide else 64, triton.cdiv(count, rows)
    splits = _num_splits(heads * tiles, len(table) * BLOCK_SIZE, tile, query.device)
    partial, peaks, totals, done = out, out, out, chunk.span
    if splits > 1:
        partial = query.new_empty((tiles * heads * splits, rows, width), dtype=torch.float32)
        peaks, totals = query.new_empty((2, tiles * heads * splits, rows), dtype=torch.float32)
        done = counters(tiles * heads, query.device)
    _attend_prefill[(heads, tiles, splits)](
        query, *cache, table, chunk.span, out, partial, peaks, totals, done,
        scale * _LOG2_E, query.stride(0), count,
        Q=heads, H=cache[0].shape[1], D=width, DP=power_of_two(width), BM=rows, BN=tile, S=splits,
        BLOCK=BLOCK_SIZE, STAGES=3, num_warps=4, **options(query.device),
    )  # fmt: skip
    return out
