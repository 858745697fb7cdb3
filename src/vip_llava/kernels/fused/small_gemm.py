"""Products of a few rows (2 to 64) with weights, bound by reading the weights.

Weights are the left operand, so that a tile has many outputs and few rows; quantized ones are
dequantized in registers. The result of a row does not depend on the rows beside it.

Shape letters: M rows (BM: all of them, padded), K inputs, N outputs (N0, N1, N2 of up to three
matrices side by side), BN outputs of a program, BK inputs read at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.gemv import scale_and_bias
from vip_llava.kernels.fused.lang import (
    EVEN_OFFSET,
    ODD_OFFSET,
    cast,
    dot,
    locate_tile,
    release_next,
    select,
    silu,
    unpack_level,
    wait_previous,
)

__all__ = ["small_gemm", "small_gemm_int4"]


@triton.jit
def _store_result(total, row, m, M, outputs, before, N, residual, out, RESIDUAL: tl.constexpr):
    """Store a tile [BN, BM] of the transposed result."""
    valid = (row < outputs)[:, None] & (m < M)[None, :]
    where = m.to(tl.int64)[None, :] * N + (before + row)[:, None]
    total = total.to(out.dtype.element_ty)
    if RESIDUAL:
        more = tl.load(residual + where, mask=valid, other=0.0)
        total = (total.to(tl.float32) + more.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + where, total, mask=valid)


@triton.jit
def small_gemm(
    x, w0, w1, w2, s0, s1, s2, b0, b1, b2, residual, out, x_row, M,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    BITS: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [M, K] times up to three matrices of 16 or 8 bits; GATED as in `gemv`."""
    release_next(OVERLAP)
    w, number, outputs, first, before = locate_tile(tl.program_id(0), w0, w1, w2, N0, N1, N2, BN)
    wait_previous(OVERLAP)
    row, m = first + tl.arange(0, BN), tl.arange(0, BM)
    at = tl.minimum(row, outputs - 1)
    start = at.to(tl.int64) * K
    begin = tl.minimum(m, M - 1) * x_row
    total = tl.zeros((BN, BM), tl.float32)
    second = tl.zeros((BN, BM), tl.float32)
    kind = x.dtype.element_ty
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        k = k0 + tl.arange(0, BK)
        where = start[:, None] + k[None, :]
        if K % BK == 0:
            part = tl.load(x + begin[:, None] + k[None, :])
            weight = tl.load(w + where)
        else:
            part = tl.load(x + begin[:, None] + k[None, :], mask=(k < K)[None, :], other=0.0)
            weight = tl.load(w + where, mask=(k < K)[None, :], other=0)
        total = dot(cast(weight, kind), tl.trans(part), total)
        if GATED:
            if K % BK == 0:
                weight = tl.load(w1 + where)
            else:
                weight = tl.load(w1 + where, mask=(k < K)[None, :], other=0)
            second = dot(cast(weight, kind), tl.trans(part), second)
    s, b = select(s0, s1, s2, number), select(b0, b1, b2, number)
    found = scale_and_bias(total, s, at, b, BITS, BIAS)
    if GATED:
        found = silu(found) * scale_and_bias(second, s1, at, b1, BITS, BIAS)
    _store_result(found, row, m, M, outputs, before, N0 + N1 + N2, residual, out, RESIDUAL)


@triton.jit
def _dequantized(word, scale, low, j: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Weights [BN, BK] at position j of words [BN, groups, 4]; scale and low are [BN, groups, 1]."""
    offset: tl.constexpr = ODD_OFFSET if j % 2 else EVEN_OFFSET
    return tl.reshape((unpack_level(word, j) - offset) * scale + low, (BN, BK))


@triton.jit
def small_gemm_int4(
    x, w0, w1, w2, s0, s1, s2, l0, l1, l2, b0, b1, b2, residual, out, x_row, M,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr, STAGES: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [M, K] times up to three matrices of 4 bits in groups of 32, eight products at a time."""
    release_next(OVERLAP)
    w, number, outputs, first, before = locate_tile(tl.program_id(0), w0, w1, w2, N0, N1, N2, BN)
    wait_previous(OVERLAP)
    s, low = select(s0, s1, s2, number), select(l0, l1, l2, number)
    GROUPS: tl.constexpr = K // 32
    row, m, part = first + tl.arange(0, BN), tl.arange(0, BM), tl.arange(0, 4)
    at = tl.minimum(row, outputs - 1)
    start = at.to(tl.int64) * GROUPS
    begin = tl.minimum(m, M - 1) * x_row
    # Eight inputs of each group: two of each word.
    input_of = tl.arange(0, BG * 8) // 8 * 32 + tl.arange(0, BG * 8) % 8
    total = tl.zeros((BN, BM), tl.float32)
    second = tl.zeros((BN, BM), tl.float32)
    kind = x.dtype.element_ty
    for g0 in tl.range(0, GROUPS, BG, num_stages=STAGES):
        g = g0 + tl.arange(0, BG)
        group = start[:, None, None] + g[None, :, None]
        there = (g < GROUPS)[None, :, None]
        word = tl.load(w + group * 4 + part[None, None, :], mask=there, other=0)
        scale = tl.load(s + group, mask=there, other=0.0).to(tl.float32)
        lowest = tl.load(low + group, mask=there, other=0.0).to(tl.float32)
        if GATED:
            word_1 = tl.load(w1 + group * 4 + part[None, None, :], mask=there, other=0)
            scale_1 = tl.load(s1 + group, mask=there, other=0.0).to(tl.float32)
            lowest_1 = tl.load(l1 + group, mask=there, other=0.0).to(tl.float32)
        for pair in tl.static_range(4):
            k = g0 * 32 + input_of + 8 * pair
            some = tl.load(x + begin[:, None] + k[None, :], mask=(k < K)[None, :], other=0.0)
            even, odd = tl.split(tl.reshape(some, (BM, BG * 4, 2)))
            even, odd = tl.trans(even), tl.trans(odd)
            weight = _dequantized(word, scale, lowest, 2 * pair, BN, BG * 4).to(kind)
            total = dot(weight, even, total)
            weight = _dequantized(word, scale, lowest, 2 * pair + 1, BN, BG * 4).to(kind)
            total = dot(weight, odd, total)
            if GATED:
                weight = _dequantized(word_1, scale_1, lowest_1, 2 * pair, BN, BG * 4).to(kind)
                second = dot(weight, even, second)
                weight = _dequantized(word_1, scale_1, lowest_1, 2 * pair + 1, BN, BG * 4).to(kind)
                second = dot(weight, odd, second)
    b = select(b0, b1, b2, number)
    found = scale_and_bias(total, s, at, b, 4, BIAS)
    if GATED:
        found = silu(found) * scale_and_bias(second, s1, at, b1, 4, BIAS)
    _store_result(found, row, m, M, outputs, before, N0 + N1 + N2, residual, out, RESIDUAL)
