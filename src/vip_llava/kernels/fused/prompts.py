"""Attention of the new tokens of one text over paged memory, where their keys and values are stored.

A program serves one query head and a tile of tokens, the latest first: they have the most to look
at. What lies before the whole tile is read without masks. Sizes of the text are read on the device
and the launch depends on shapes alone, so a graph may hold it.

Shape letters: N new tokens (those that fill up included), Q query heads, H key/value heads, D width
of a head, P places, W blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.lang import product, release_next, wait_previous
from vip_llava.kernels.fused.parts import EVER, NEVER
from vip_llava.kernels.fused.setting import options, power_of_two
from vip_llava.kernels.values import BLOCK_TOKENS

__all__ = ["paged_prompt"]


@triton.jit
def _over(
    begin, end, last, asked, at, keys, values, table, held, window, scale, high, total, found,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TOKENS: tl.constexpr, EDGE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The running maximum, total and result after the tokens from `begin` to `end`.

    EDGE: not every query sees all of them; `last` is where the text ends.
    """
    n, d = tl.arange(0, BN), tl.arange(0, DP)
    inside = d < D
    for first in tl.range(begin, end, BN, num_stages=STAGES):
        token = first + n
        there = token < last
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
def _attend_prompt(
    q, keys, values, table, span, out, scale, window, q_row, N,
    Q: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, TOKENS: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
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
    last = tl.minimum(first + BM, length)
    if first >= length:  # a tile that only fills up
        last = 0
    begin = 0
    whole = tl.minimum(first + 1, last) // BN * BN
    if WINDOW:
        begin = tl.maximum(first + 1 - window, 0) // BN * BN
        whole = begin
    high = tl.full((BM,), NEVER, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    found = tl.zeros((BM, DP), tl.float32)
    high, total, found = _over(
        begin, whole, last, asked, at, keys, values, table, held, window, scale, high, total, found,
        H, D, DP, BM, BN, TOKENS, False, STAGES,
    )  # fmt: skip
    high, total, found = _over(
        whole, last, last, asked, at, keys, values, table, held, window, scale, high, total, found,
        H, D, DP, BM, BN, TOKENS, True, STAGES,
    )  # fmt: skip
    found = found / tl.where(total > 0, total, 1.0)[:, None]
    to = (token[:, None] * Q + head) * D + d[None, :]
    tl.store(out + to, found.to(out.dtype.element_ty), mask=mask)


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
    _attend_prompt[(heads, triton.cdiv(count, rows))](
        query, keys, values, table, span, out, scale * 1.4426950408889634, window or EVER,
        query.stride(0), count,
        Q=heads, H=keys.shape[1], D=width, DP=power_of_two(width), BM=rows, BN=32 if wide else 64,
        TOKENS=BLOCK_TOKENS, WINDOW=window is not None, STAGES=3, num_warps=4,
        **options(query.device),
    )  # fmt: skip
    return out
