"""Products of one row with weights: each weight is read once, multiplied and forgotten.

The time is that of reading weights, so nothing else may wait for memory: a program has its first
weights on the way before it waits for the kernel before it, and its next ones before it multiplies
what has come. The norm before a product
is done on the way (its sum of squares is ready when the product is), as are the gate, the bias and
the sum after it. All sums are in float32 and in a fixed order.

Shape letters: K inputs, N outputs (N0, N1, N2 of up to three matrices side by side), BN outputs of
a program, BK inputs that it reads at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.lang import (
    ahead,
    choose,
    release_next,
    silu,
    wait_previous,
    which,
)

__all__ = ["finish", "scaled", "vector"]


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
def finish(total, row, outputs, before, residual, out, RESIDUAL: tl.constexpr):
    mine = row < outputs
    total = total.to(out.dtype.element_ty)
    if RESIDUAL:
        # Rounded before the sum, as it would be if the sum were a step of its own.
        more = tl.load(residual + before + row, mask=mine, other=0.0)
        total = (total.to(tl.float32) + more.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + before + row, total, mask=mine)


@triton.jit
def vector(
    x, w0, w1, w2, b0, b1, b2, norm, residual, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x [K] times up to three matrices of 16 or 32 bits.

    GATED: w0 is the gate, w1 what it is multiplied with, and N1 is 0.
    """
    release_next(OVERLAP)
    w, number, outputs, first, before = which(tl.program_id(0), w0, w1, w2, N0, N1, N2, BN)
    if PIECES:
        ahead(w, first, outputs, K, COLUMNS, BN, PIECES)
        if GATED:
            ahead(w1, first, outputs, K, COLUMNS, BN, PIECES)
    row = first + tl.arange(0, BN)
    # Rows beyond the end read the last one again, which is cheaper than a mask.
    at = tl.minimum(row, outputs - 1)
    start = at.to(tl.int64) * K
    k = tl.arange(0, BK)
    where = start[:, None] + k[None, :]
    weight = tl.load(w + where, mask=(k < K)[None, :], other=0)
    if GATED:
        weight_1 = tl.load(w1 + where, mask=(k < K)[None, :], other=0)
    wait_previous(OVERLAP)
    total = tl.zeros((BN,), tl.float32)
    second = tl.zeros((BN,), tl.float32)
    squares = tl.zeros((BK,), tl.float32)
    for k0 in tl.static_range(0, K, BK):
        part = tl.load(x + k0 + k, mask=k0 + k < K, other=0.0).to(tl.float32)
        if NORM:
            squares += part * part
            part *= tl.load(norm + k0 + k, mask=k0 + k < K, other=0.0).to(tl.float32)
        this = weight.to(tl.float32) * part[None, :]
        if k0 + BK < K:
            more = (k0 + BK + k < K)[None, :]
            weight = tl.load(w + where + (k0 + BK), mask=more, other=0)
        total += tl.sum(this, axis=1)
        if GATED:
            this = weight_1.to(tl.float32) * part[None, :]
            if k0 + BK < K:
                weight_1 = tl.load(w1 + where + (k0 + BK), mask=more, other=0)
            second += tl.sum(this, axis=1)
    root = 1.0
    if NORM:
        root = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)
    found = scaled(total * root, w, at, choose(b0, b1, b2, number), 16, BIAS)
    if GATED:
        up = scaled(second * root, w1, at, b1, 16, BIAS)
        found = silu(found) * up
    finish(found, row, outputs, before, residual, out, RESIDUAL)
