"""Products of one row with weights: each weight is read once, multiplied and forgotten.

The time is that of reading weights, so nothing else may wait for memory: the norm before a product
is done on the way (its sum of squares is ready when the product is), as are the gate, the bias and
the sum after it. All sums are in float32 and in a fixed order.

Shape letters: K inputs, N outputs (N0, N1, N2 of up to three matrices side by side), BN outputs of
a program, BK inputs that it reads at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.lang import ahead, choose, release_next, silu, wait_previous, which

__all__ = ["levels", "scaled", "vector", "vector_int4"]


@triton.jit
def scaled(total, s, at, b, BITS: tl.constexpr, BIAS: tl.constexpr):
    """Sums of products [BN] or [BN, BM] with the scale and the bias of their outputs `at` [BN]."""
    if len(total.shape) == 2:
        at = at[:, None]
    if BITS == 8:
        total *= tl.load(s + at).to(tl.float32)
    if BIAS:
        total += tl.load(b + at).to(tl.float32)
    return total


@triton.jit
def _finish(total, row, outputs, before, residual, out, RESIDUAL: tl.constexpr):
    mine = row < outputs
    total = total.to(out.dtype.element_ty)
    if RESIDUAL:
        # Rounded before the sum, as it would be if the sum were a step of its own.
        more = tl.load(residual + before + row, mask=mine, other=0.0)
        total = (total.to(tl.float32) + more.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + before + row, total, mask=mine)


@triton.jit
def vector(
    x, w0, w1, w2, s0, s1, s2, b0, b1, b2, norm, residual, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, BITS: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """x [K] times up to three matrices of 16 (or 32) or 8 bits.

    GATED: w0 is the gate, w1 what it is multiplied with, and N1 is 0.
    """
    release_next(OVERLAP)
    w, number, outputs, first, before = which(w0, w1, w2, N0, N1, N2, BN)
    if PIECES:
        ahead(w, first, outputs, K, BN, PIECES)
        if GATED:
            ahead(w1, first, outputs, K, BN, PIECES)
    wait_previous(OVERLAP)
    row = first + tl.arange(0, BN)
    # Rows beyond the end read the last one again, which is cheaper than a mask.
    at = tl.minimum(row, outputs - 1)
    start = at.to(tl.int64) * K
    total = tl.zeros((BN, BK), tl.float32)
    second = tl.zeros((BN, BK), tl.float32)
    squares = tl.zeros((BK,), tl.float32)
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        k = k0 + tl.arange(0, BK)
        where = start[:, None] + k[None, :]
        if K % BK == 0:
            part = tl.load(x + k).to(tl.float32)
            weight = tl.load(w + where).to(tl.float32)
        else:
            part = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            weight = tl.load(w + where, mask=(k < K)[None, :], other=0).to(tl.float32)
        if NORM:
            squares += part * part
            part *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        total += weight * part[None, :]
        if GATED:
            weight = tl.load(w1 + where, mask=(k < K)[None, :], other=0).to(tl.float32)
            second += weight * part[None, :]
    root = 1.0
    if NORM:
        root = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)
    found = scaled(
        tl.sum(total, axis=1) * root, choose(s0, s1, s2, number), at,
        choose(b0, b1, b2, number), BITS, BIAS,
    )  # fmt: skip
    if GATED:
        up = scaled(tl.sum(second, axis=1) * root, s1, at, b1, BITS, BIAS)
        found = silu(found) * up
    _finish(found, row, outputs, before, residual, out, RESIDUAL)


@triton.jit
def levels(word, j: tl.constexpr):
    """Four bits of each 32-bit word, plus 16, as float32.

    The bits are put where a float32 of 16 has its highest four behind the leading one: one shift,
    one logical operation and no conversion, which would take as long as four of them.
    """
    word = word << (19 - 4 * j) if j < 5 else word >> (4 * j - 19)
    return ((word & 0x00780000) | 0x41800000).to(tl.float32, bitcast=True)


@triton.jit
def _grouped(products, s, low, where, mask, x_sum):
    """What groups add to their outputs; `products` were made with levels that are 16 too high."""
    scale = tl.load(s + where, mask=mask, other=0.0).to(tl.float32)
    lowest = tl.load(low + where, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(products, axis=2) * scale + (lowest - 16.0 * scale) * x_sum[None, :]


@triton.jit
def vector_int4(
    x, w0, w1, w2, s0, s1, s2, l0, l1, l2, b0, b1, b2, norm, residual, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BG: tl.constexpr, STAGES: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """x [K] times up to three matrices of 4 bits in groups of 32; BG groups are read at a time.

    Weights come as 32-bit words, four for a group; a thread has whole groups.
    """
    release_next(OVERLAP)
    w, number, outputs, first, before = which(w0, w1, w2, N0, N1, N2, BN)
    if PIECES:
        ahead(w, first, outputs, K // 8, BN, PIECES)
        if GATED:
            ahead(w1, first, outputs, K // 8, BN, PIECES)
    wait_previous(OVERLAP)
    s, low = choose(s0, s1, s2, number), choose(l0, l1, l2, number)
    GROUPS: tl.constexpr = K // 32
    row = first + tl.arange(0, BN)
    at = tl.minimum(row, outputs - 1)
    start = at.to(tl.int64) * GROUPS
    part, eight = tl.arange(0, 4), tl.arange(0, 8)
    total = tl.zeros((BN, BG), tl.float32)
    second = tl.zeros((BN, BG), tl.float32)
    squares = tl.zeros((BG, 8), tl.float32)
    for g0 in tl.range(0, GROUPS, BG, num_stages=STAGES):
        g = g0 + tl.arange(0, BG)
        there = g < GROUPS
        group = start[:, None] + g[None, :]
        word_at = group[:, :, None] * 4 + part[None, None, :]
        word = tl.load(w + word_at, mask=there[None, :, None], other=0)
        products = tl.zeros((BN, BG, 4), tl.float32)
        x_sums = tl.zeros((BG, 4), tl.float32)
        if GATED:
            other_word = tl.load(w1 + word_at, mask=there[None, :, None], other=0)
            others = tl.zeros((BN, BG, 4), tl.float32)
        for pair in tl.static_range(4):
            k = g[:, None] * 32 + 8 * pair + eight[None, :]
            values = tl.load(x + k, mask=there[:, None], other=0.0).to(tl.float32)
            if NORM:
                squares += values * values
                values *= tl.load(norm + k, mask=there[:, None], other=0.0).to(tl.float32)
            even, odd = tl.split(tl.reshape(values, (BG, 4, 2)))
            x_sums += even + odd
            products += levels(word, 2 * pair) * even[None, :, :]
            products += levels(word, 2 * pair + 1) * odd[None, :, :]
            if GATED:
                others += levels(other_word, 2 * pair) * even[None, :, :]
                others += levels(other_word, 2 * pair + 1) * odd[None, :, :]
        x_sum = tl.sum(x_sums, axis=1)
        total += _grouped(products, s, low, group, there[None, :], x_sum)
        if GATED:
            second += _grouped(others, s1, l1, group, there[None, :], x_sum)
    root = 1.0
    if NORM:
        root = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / K + eps)
    found = tl.sum(total, axis=1) * root
    found = scaled(found, s, at, choose(b0, b1, b2, number), 4, BIAS)
    if GATED:
        found = silu(found) * scaled(tl.sum(second, axis=1) * root, s1, at, b1, 4, BIAS)
    _finish(found, row, outputs, before, residual, out, RESIDUAL)
