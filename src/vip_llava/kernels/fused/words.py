"""Products of one row with weights of 4 bits, read as 32-bit words.

Every operation on a weight counts. Weights become float32 by one logical operation each: their bits
are put into the mantissa of a larger number, and what that is too much is known from sums of the
row, which all outputs share. The norm, the gate, the bias and the sum after a product are done on
the way, as in `vector`.

Shape letters as there; BG groups of 32 inputs are read at a time, each by one thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.lang import (
    EVEN_MORE,
    ODD_MORE,
    ahead,
    choose,
    level,
    release_next,
    silu,
    wait_previous,
    which,
)
from vip_llava.kernels.fused.vector import finish, scaled

__all__ = ["vector_int4"]


@triton.jit
def _grouped(products, s, low, where, mask, x_sum, x_more):
    """What groups add to their outputs; `products` were made with levels that are too high."""
    scale = tl.load(s + where, mask=mask, other=0.0).to(tl.float32)
    lowest = tl.load(low + where, mask=mask, other=0.0).to(tl.float32)
    return (tl.sum(products, axis=2) - x_more[None, :]) * scale + lowest * x_sum[None, :]


@triton.jit
def vector_int4(
    x, w0, w1, w2, s0, s1, s2, l0, l1, l2, b0, b1, b2, norm, residual, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BG: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x [K] times up to three matrices of 4 bits in groups of 32; BG groups are read at a time.

    Weights come as 32-bit words, four for a group; a thread has whole groups.
    """
    release_next(OVERLAP)
    w, number, outputs, first, before = which(w0, w1, w2, N0, N1, N2, BN)
    if PIECES:
        ahead(w, first, outputs, K // 8, COLUMNS // 8, BN, PIECES)
        if GATED:
            ahead(w1, first, outputs, K // 8, COLUMNS // 8, BN, PIECES)
    s, low = choose(s0, s1, s2, number), choose(l0, l1, l2, number)
    GROUPS: tl.constexpr = K // 32
    row = first + tl.arange(0, BN)
    at = tl.minimum(row, outputs - 1)
    start = at.to(tl.int64) * GROUPS
    part, eight = tl.arange(0, 4), tl.arange(0, 8)
    g = tl.arange(0, BG)
    here = (start[:, None] + g[None, :])[:, :, None] * 4 + part[None, None, :]
    word = tl.load(w + here, mask=(g < GROUPS)[None, :, None], other=0)
    if GATED:
        word_1 = tl.load(w1 + here, mask=(g < GROUPS)[None, :, None], other=0)
    wait_previous(OVERLAP)
    total = tl.zeros((BN, BG), tl.float32)
    second = tl.zeros((BN, BG), tl.float32)
    squares = tl.zeros((BG, 8), tl.float32)
    for g0 in tl.range(0, GROUPS, BG):
        there = (g0 + g < GROUPS)[None, :]
        group = start[:, None] + (g0 + g)[None, :]
        this = word
        further = (g0 + BG + g < GROUPS)[None, :, None]
        word = tl.load(w + here + (g0 + BG) * 4, mask=further, other=0)
        if GATED:
            this_1 = word_1
            word_1 = tl.load(w1 + here + (g0 + BG) * 4, mask=further, other=0)
            products_1 = tl.zeros((BN, BG, 4), tl.float32)
        products = tl.zeros((BN, BG, 4), tl.float32)
        evens = tl.zeros((BG, 4), tl.float32)
        odds = tl.zeros((BG, 4), tl.float32)
        for pair in tl.static_range(4):
            k = (g0 + g)[:, None] * 32 + 8 * pair + eight[None, :]
            values = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            if NORM:
                squares += values * values
                values *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
            even, odd = tl.split(tl.reshape(values, (BG, 4, 2)))
            evens += even
            odds += odd
            products += level(this, 2 * pair) * even[None, :, :]
            products += level(this, 2 * pair + 1) * odd[None, :, :]
            if GATED:
                products_1 += level(this_1, 2 * pair) * even[None, :, :]
                products_1 += level(this_1, 2 * pair + 1) * odd[None, :, :]
        x_sum = tl.sum(evens + odds, axis=1)
        x_more = tl.sum(evens * EVEN_MORE + odds * ODD_MORE, axis=1)
        total += _grouped(products, s, low, group, there, x_sum, x_more)
        if GATED:
            second += _grouped(products_1, s1, l1, group, there, x_sum, x_more)
    root = 1.0
    if NORM:
        root = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / K + eps)
    found = tl.sum(total, axis=1) * root
    found = scaled(found, s, at, choose(b0, b1, b2, number), 4, BIAS)
    if GATED:
        found = silu(found) * scaled(tl.sum(second, axis=1) * root, s1, at, b1, 4, BIAS)
    finish(found, row, outputs, before, residual, out, RESIDUAL)
