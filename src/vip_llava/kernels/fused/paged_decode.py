"""Attention of one new token a sequence over the paged KV cache, split over its length.

A program serves one key head of one sequence and one split of its tokens. The split that ends with
the new token rotates and stores its key and value on the way, and the program that finishes last
combines the splits, in their order, so that neither needs a launch of its own. Nothing is read on
the host, and the number of splits depends on shapes alone, so a graph can hold the launch.

Shape letters: R sequences, Q query heads, H key/value heads, D width of a head, P slots, W blocks
of a sequence, S splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused import tuned_configs
from vip_llava.kernels.fused.lang import dot, release_next, rotated, wait_previous
from vip_llava.kernels.fused.launch import num_processors, options, power_of_two
from vip_llava.kernels.fused.split_kv import (
    NEVER,
    combine_splits,
    counters,
    is_last_split,
    load_tile,
    split_range,
)
from vip_llava.kernels.values import BLOCK_SIZE, DecodeBatch

__all__ = ["decode_attention"]

_MAX_SPLITS = 16


@triton.jit
def _accumulate(peak, total, acc, query, key, value, seen):
    """The running maximum, total and result of every position of a tile, with one tile more."""
    score = tl.sum(key.to(tl.float32) * query[None, :], axis=1)
    score = tl.where(seen, score, NEVER)
    higher = tl.maximum(peak, score)
    decay = tl.exp(peak - higher)
    p = tl.where(seen, tl.exp(score - higher), 0.0)
    acc = acc * decay[:, None] + p[:, None] * value.to(tl.float32)
    return higher, total * decay + p, acc


@triton.jit
def _attend_mha(
    q, k, v, cos, sin, keys, values, slots, table, lengths, out, partial, peaks, totals, done,
    scale, q_row, k_row, v_row, table_row,
    Q: tl.constexpr, H: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    S: tl.constexpr, BL: tl.constexpr, BLOCK: tl.constexpr, PREFETCH: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """As many key heads as query heads: products of vectors. Every position of a tile has its own
    running maximum, so that threads exchange nothing before the end."""
    release_next(OVERLAP)
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, begin, end = split_range(lengths, row, split, S, BL)
    owns = (begin < length) & (end == length)
    end = tl.minimum(end, length - 1)
    d, offset = tl.arange(0, DP), tl.arange(0, BL)
    inside = d < D
    # The first tiles are requested before the new token is known.
    blocks = table + row * table_row
    key, value, seen = load_tile(keys, values, blocks, head, begin, end, d, offset, H, D, BLOCK)
    key_1, value_1, seen_1, key_2, value_2, seen_2 = key, value, seen, key, value, seen
    if PREFETCH:
        key_1, value_1, seen_1 = load_tile(
            keys, values, blocks, head, begin + BL, end, d, offset, H, D, BLOCK
        )
        key_2, value_2, seen_2 = load_tile(
            keys, values, blocks, head, begin + 2 * BL, end, d, offset, H, D, BLOCK
        )
    wait_previous(OVERLAP)
    angles = row * D
    query = rotated(q, cos + angles, sin + angles, row * q_row + head * D, d, D, inside)
    # Rounded as the reference does it.
    query = query.to(q.dtype.element_ty).to(tl.float32) * scale
    new_key = rotated(k, cos + angles, sin + angles, row * k_row + head * D, d, D, inside)
    new_key = new_key.to(keys.dtype.element_ty)
    new_value = tl.load(v + row * v_row + head * D + d, mask=inside, other=0.0)
    slot = tl.load(slots + row).to(tl.int64)
    to = (slot * H + head) * D + d
    writes = tl.where(owns & (slot >= 0), inside, d < 0)
    tl.store(keys + to, new_key, mask=writes)
    tl.store(values + to, new_value.to(values.dtype.element_ty), mask=writes)
    peak = tl.where(seen, tl.sum(key.to(tl.float32) * query[None, :], axis=1), NEVER)
    total = tl.where(seen, 1.0, 0.0)
    acc = total[:, None] * value.to(tl.float32)
    rest = begin + BL
    if PREFETCH:
        peak, total, acc = _accumulate(peak, total, acc, query, key_1, value_1, seen_1)
        peak, total, acc = _accumulate(peak, total, acc, query, key_2, value_2, seen_2)
        rest += 2 * BL
    for at in tl.range(rest, end, BL, num_stages=STAGES):
        key, value, seen = load_tile(keys, values, blocks, head, at, end, d, offset, H, D, BLOCK)
        peak, total, acc = _accumulate(peak, total, acc, query, key, value, seen)
    # The new token comes last, so that nothing of it delays reading the others.
    new = owns & (offset == 0)
    score = tl.where(new, tl.sum(new_key.to(tl.float32) * query, axis=0), NEVER)
    higher = tl.maximum(peak, score)
    decay = tl.exp(peak - higher)
    p = tl.where(new, tl.exp(score - higher), 0.0)
    total = total * decay + p
    acc = acc * decay[:, None] + p[:, None] * new_value.to(tl.float32)[None, :]
    top = tl.max(higher, axis=0)
    decay = tl.exp(higher - top)
    total_all = tl.sum(total * decay, axis=0)
    acc_all = tl.sum(acc * decay[:, None], axis=0)
    index = row * Q + head
    if S == 1:
        result = acc_all / tl.where(total_all > 0, total_all, 1.0)
        tl.store(out + index * D + d, result.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(partial + (index * S + split) * D + d, acc_all, mask=inside)
        tl.store(peaks + index * S + split, top)
        tl.store(totals + index * S + split, total_all)
        if is_last_split(done + index, S):
            combine_splits(partial, peaks, totals, out, index, D, DP, S)


@triton.jit
def _attend_gqa(
    q, k, v, cos, sin, keys, values, slots, table, lengths, out, partial, peaks, totals, done,
    scale, q_row, k_row, v_row, table_row,
    Q: tl.constexpr, H: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    S: tl.constexpr, BL: tl.constexpr, BLOCK: tl.constexpr, PREFETCH: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Several query heads share a key head: matrix products of at least 16 rows."""
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, begin, end = split_range(lengths, row, split, S, BL)
    G: tl.constexpr = Q // H
    d, offset, g = tl.arange(0, DP), tl.arange(0, BL), tl.arange(0, GP)
    inside = d < D
    heads = kv_head * G + g
    valid = (g < G)[:, None] & inside[None, :]
    at_q = row * q_row + heads[:, None] * D
    dtype = keys.dtype.element_ty
    peak = tl.full((GP,), NEVER, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, DP), tl.float32)
    angles = row * D
    query = rotated(q, cos + angles, sin + angles, at_q, d[None, :], D, valid).to(dtype)
    new_key = rotated(k, cos + angles, sin + angles, row * k_row + kv_head * D, d, D, inside)
    new_key = new_key.to(dtype)
    new_value = tl.load(v + row * v_row + kv_head * D + d, mask=inside, other=0.0)
    owns = (begin < length) & (end == length)
    slot = tl.load(slots + row).to(tl.int64)
    to = (slot * H + kv_head) * D + d
    writes = tl.where(owns & (slot >= 0), inside, d < 0)
    tl.store(keys + to, new_key, mask=writes)
    tl.store(values + to, new_value.to(values.dtype.element_ty), mask=writes)
    new_score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scale
    peak = tl.where(owns, new_score, peak)
    total = tl.where(owns, 1.0, total)
    acc = tl.where(owns, new_value.to(tl.float32)[None, :], acc)
    end = tl.minimum(end, length - 1)
    blocks = table + row * table_row
    for at in tl.range(begin, end, BL, num_stages=STAGES):
        key, value, seen = load_tile(keys, values, blocks, kv_head, at, end, d, offset, H, D, BLOCK)
        score = dot(query, tl.trans(key), tl.zeros((GP, BL), tl.float32)) * scale
        score = tl.where(seen[None, :], score, NEVER)
        higher = tl.maximum(peak, tl.max(score, axis=1))
        decay = tl.exp(peak - higher)
        p = tl.where(seen[None, :], tl.exp(score - higher[:, None]), 0.0)
        total = total * decay + tl.sum(p, axis=1)
        acc = dot(p.to(dtype), value, acc * decay[:, None])
        peak = higher
    index = row * Q + heads
    if S == 1:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        to = index[:, None] * D + d[None, :]
        tl.store(out + to, acc.to(out.dtype.element_ty), mask=valid)
    else:
        tl.store(peaks + index * S + split, peak, mask=g < G)
        tl.store(totals + index * S + split, total, mask=g < G)
        to = (index * S + split)[:, None] * D + d[None, :]
        tl.store(partial + to, acc, mask=valid)
        if is_last_split(done + row * Q + kv_head, S):
            for one in range(G):
                combine_splits(partial, peaks, totals, out, row * Q + kv_head * G + one, D, DP, S)


def _num_splits(
    seqs: int, heads: int, kv_heads: int, capacity: int, tile: int, device: torch.device
) -> int:
    """Splits of sequences of up to `capacity` tokens: enough programs, and no empty splits."""
    most = max(1, min(-(-capacity // tile), _MAX_SPLITS))
    if heads > kv_heads:
        wanted = -(-3 * num_processors(device) // (seqs * kv_heads))
        return min(power_of_two(wanted), power_of_two(most))
    # A multiprocessor has room for two programs with their prefetched tiles.
    wanted = -(-2 * num_processors(device) // (seqs * kv_heads))
    return 1 << (min(wanted, most).bit_length() - 1)


def decode_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    batch: DecodeBatch,
    scale: float,
) -> Tensor:
    """Rotate, store and attend, in one kernel: [R, Q, D]."""
    q, k, v = qkv
    seqs, heads, width = q.shape
    kv_heads = cache[0].shape[1]
    table = batch.block_tables
    config = tuned_configs.attention_config(heads > kv_heads)
    capacity = table.shape[1] * BLOCK_SIZE
    splits = config.splits or _num_splits(seqs, heads, kv_heads, capacity, config.tile, q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    partial, peaks, totals, done = out, out, out, batch.lengths
    if splits > 1:
        partial = q.new_empty((seqs, heads, splits, width), dtype=torch.float32)
        peaks, totals = q.new_empty((2, seqs, heads, splits), dtype=torch.float32)
        done = counters(seqs * heads, q.device)
    (_attend_mha if heads == kv_heads else _attend_gqa)[(seqs, kv_heads, splits)](
        q, k, v, *rotary, *cache, batch.slot_mapping, table, batch.lengths, out,
        partial, peaks, totals, done, scale,
        q.stride(0), k.stride(0), v.stride(0), table.stride(0),
        Q=heads, H=kv_heads, GP=max(16, power_of_two(heads // kv_heads)),
        D=width, DP=power_of_two(width), S=splits, BL=config.tile, BLOCK=BLOCK_SIZE,
        PREFETCH=splits >= 4, STAGES=config.stages, num_warps=config.warps,
        **options(q.device),
    )  # fmt: skip
    return out
