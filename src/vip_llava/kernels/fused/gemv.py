"""GEMV: the product of one row with weights of 16 or 32 bits, bound by reading them.

Nothing else may wait for memory: a program requests its first weights before it waits for the
kernel before it, and its next ones before it multiplies those that arrived. The norm before the
product (its sum of squares is ready when the product is), the gate, the bias and the residual are
fused. All sums are in float32 and in a fixed order.

Shape letters: K inputs, N outputs (N0, N1, N2 of up to three matrices side by side), BN outputs of
a program, BK inputs read at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.lang import (
    locate_tile,
    release_next,
    select,
    silu,
    wait_previous,
)

__all__ = ["gemv", "scale_and_bias", "store_result"]


@triton.jit
def scale_and_bias(total, s, at, b, BITS: tl.constexpr, BIAS: tl.constexpr):
    """Sums of products [BN] or [BN, BM] with the scale and bias of their outputs `at` [BN]."""
    if len(total.shape) == 2:
        at = at[:, None]
    if BITS == 8:
        total *= tl.load(s + at).to(tl.float32)
    if BIAS:
        total += tl.load(b + at).to(tl.float32)
    return total


@triton.jit
def store_result(total, row, outputs, before, residual, out, RESIDUAL: tl.constexpr):
    valid = row < outputs
    total = total.to(out.dtype.element_ty)
    if RESIDUAL:
        # Rounded before the sum, as in a separate step.
        more = tl.load(residual + before + row, mask=valid, other=0.0)
        total = (total.to(tl.float32) + more.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + before + row, total, mask=valid)


@triton.jit
def gemv(
    x, w0, w1, w2, b0, b1, b2, norm, residual, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [K] times up to three matrices. GATED: w0 is the gate, w1 the other factor, N1 is 0."""
    release_next(OVERLAP)
    w, number, outputs, first, before = locate_tile(tl.program_id(0), w0, w1, w2, N0, N1, N2, BN)
    row = first + tl.arange(0, BN)
    # Rows beyond the end read the last one again; a mask costs more.
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
    found = scale_and_bias(total * root, w, at, select(b0, b1, b2, number), 16, BIAS)
    if GATED:
        up = scale_and_bias(second * root, w1, at, b1, 16, BIAS)
        found = silu(found) * up
    store_result(found, row, outputs, before, residual, out, RESIDUAL)
