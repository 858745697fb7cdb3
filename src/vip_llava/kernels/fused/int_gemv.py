"""GEMV with weights of 8 and 4 bits, which are never dequantized.

Few operations on a weight fit into the time of reading it. So the row is quantized to bytes
(`dp4a`), and four weights are multiplied at once. A program does that once, keeps the row in
registers and goes through several tiles of outputs, with the weights of its next tile requested.
The norm before the product, the gate, the bias and the residual are fused, as in `gemv`.

Shape letters as there; a tile is BN outputs; a thread has groups (16 bytes of weights) of every
output of it, and BG neighbouring groups are a piece.
"""

# mypy: disable-error-code="assignment"
# Tuples grow in loops that are unrolled at compile time.

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.dp4a import int_products, load_eights, opaque, quantize_row
from vip_llava.kernels.fused.lang import (
    locate_tile,
    prefetch_rows,
    release_next,
    select,
    silu,
    wait_previous,
)

__all__ = ["int_gemv"]


@triton.jit
def _load_weights(
    w, s, low, first, outputs,
    GROUPS: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr, BITS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Weights of BN outputs: words [BG, BN, 4], scales and lows [BG, BN] of each piece."""
    row = tl.arange(0, BN)
    if not EVEN:  # rows beyond the end read the last one again
        row = tl.minimum(row, outputs - 1 - first)
    begin = first.to(tl.int64) * GROUPS
    word = tl.arange(0, 4 * BG)
    group = opaque(tl.arange(0, BG))
    # Compile-time constants are added last, so that they cost nothing.
    across = row[None, :] * GROUPS
    words, scales, lows = (), (), ()
    for piece in tl.static_range(0, GROUPS, BG):
        # The contiguous dimension first: the compiler then gives a thread one group of each output.
        at = w + begin * 4 + word[:, None] + (across + piece) * 4
        at_s = tl.max_contiguous(s + begin + group[:, None] + (across + piece), (BG, 1))
        at_low = tl.max_contiguous(low + begin + group[:, None] + (across + piece), (BG, 1))
        if piece + BG <= GROUPS:
            read = tl.load(at)
            if BITS == 4:
                scales += (tl.load(at_s),)
                lows += (tl.load(at_low),)
        else:
            read = tl.load(at, mask=(piece * 4 + word < GROUPS * 4)[:, None], other=0)
            if BITS == 4:
                there = (piece + group < GROUPS)[:, None]
                scales += (tl.load(at_s, mask=there, other=0.0),)
                lows += (tl.load(at_low, mask=there, other=0.0),)
        words += (tl.permute(tl.reshape(read, (BG, 4, BN)), (0, 2, 1)),)
    return words, scales, lows


@triton.jit
def _prefetch_tile(
    tile, w0, w1, w2, s0, s1, s2, l0, l1, l2,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    GROUPS: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Prefetch the weights of a tile into the L2 cache, if there is one with this number."""
    if tile < (N0 + BN - 1) // BN + (N1 + BN - 1) // BN + (N2 + BN - 1) // BN:
        w, number, outputs, first, _ = locate_tile(tile, w0, w1, w2, N0, N1, N2, BN)
        prefetch_rows(w, first, outputs, GROUPS * 4, BN)
        if GATED:
            prefetch_rows(w1, first, outputs, GROUPS * 4, BN)
        if BITS == 4:
            prefetch_rows(select(s0, s1, s2, number), first, outputs, GROUPS, BN)
            prefetch_rows(select(l0, l1, l2, number), first, outputs, GROUPS, BN)
            if GATED:
                prefetch_rows(s1, first, outputs, GROUPS, BN)
                prefetch_rows(l1, first, outputs, GROUPS, BN)


@triton.jit
def _multiply(
    weights, row, BN: tl.constexpr, BG: tl.constexpr, PIECES: tl.constexpr, BITS: tl.constexpr
):
    """The result of `_load_weights` times the row, not yet summed: [BG, BN]."""
    words, scales, lows = weights
    total = tl.zeros((BG, BN), tl.float32)
    for i in tl.static_range(PIECES):
        bytes, step, sums = row[i]
        found = int_products(words[i], bytes, BG, BN, BITS)
        if BITS == 4:
            total += found * (scales[i].to(tl.float32) * step[:, None])
            total += lows[i].to(tl.float32) * sums[:, None]
        else:
            total += found * step[:, None]
    return total


@triton.jit
def _load_epilogue(
    s, b, residual, at, BITS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr
):
    """Scale, bias and residual of outputs `at` [BN]."""
    scale, bias, more = 1.0, 0.0, 0.0
    if BITS == 8:
        scale = tl.load(s + at)
    if BIAS:
        bias = tl.load(b + at)
    if RESIDUAL:
        more = tl.load(residual + at)
    return scale, bias, more


@triton.jit
def _epilogue(found, epilogue, BITS: tl.constexpr, BIAS: tl.constexpr):
    if BITS == 8:
        found *= epilogue[0].to(tl.float32)
    if BIAS:
        found += epilogue[1].to(tl.float32)
    return found


@triton.jit(do_not_specialize=["prefetch"])
def int_gemv(
    x, w0, w1, w2, s0, s1, s2, l0, l1, l2, b0, b1, b2, norm, residual, out, eps, prefetch,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BG: tl.constexpr, BITS: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """x [K] times up to three matrices of 8 bits, or of 4 in groups of 32; GATED as in `gemv`.

    Weights are 32-bit words. `prefetch`: weights are prefetched that many tiles in advance.
    """
    release_next(OVERLAP)
    GROUPS: tl.constexpr = K * BITS // 128
    PIECES: tl.constexpr = (GROUPS + BG - 1) // BG
    TILES: tl.constexpr = (N0 + BN - 1) // BN + (N1 + BN - 1) // BN + (N2 + BN - 1) // BN
    EVEN: tl.constexpr = N0 % BN == 0 and N1 % BN == 0 and N2 % BN == 0
    g = tl.arange(0, BG)
    begin = tl.program_id(0)
    w, number, outputs, first, before = locate_tile(begin, w0, w1, w2, N0, N1, N2, BN)
    s, low = select(s0, s1, s2, number), select(l0, l1, l2, number)
    coming = _load_weights(w, s, low, first, outputs, GROUPS, BN, BG, BITS, EVEN)
    coming_1 = coming
    if GATED:
        coming_1 = _load_weights(w1, s1, l1, first, outputs, GROUPS, BN, BG, BITS, EVEN)
    programs = tl.num_programs(0)
    if OVERLAP:
        for i in tl.range(prefetch):
            tile = begin + (i + 1) * programs
            _prefetch_tile(
                tile, w0, w1, w2, s0, s1, s2, l0, l1, l2, N0, N1, N2, GROUPS, BN, BITS, GATED
            )
    norms = ()
    for piece in tl.static_range(0, GROUPS, BG):
        norms += (load_eights(norm, piece + g, GROUPS, BITS) if NORM else (x, x, x, x),)
    wait_previous(OVERLAP)
    row, parts = (), ()
    squares = tl.zeros((BG, 8), tl.float32)
    for piece in tl.static_range(0, GROUPS, BG):
        parts += (load_eights(x, piece + g, GROUPS, BITS),)
    for i in tl.static_range(PIECES):
        bytes, step, sums, squares = quantize_row(parts[i], norms[i], squares, BG, BITS, NORM)
        row += ((bytes, step, sums),)
    root = 1.0
    if NORM:
        root = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / K + eps)
    for tile in tl.range(begin, TILES, programs):
        this, this_1, to, rows = coming, coming_1, before + first, outputs - first
        at = tl.minimum(first + tl.arange(0, BN), outputs - 1)
        s, b = select(s0, s1, s2, number), select(b0, b1, b2, number)
        epilogue = _load_epilogue(s, b, residual + before, at, BITS, BIAS, RESIDUAL)
        epilogue_1 = epilogue
        if GATED:
            epilogue_1 = _load_epilogue(s1, b1, residual + before, at, BITS, BIAS, RESIDUAL)
        further = tile + programs
        if further < TILES:
            w, number, outputs, first, before = locate_tile(further, w0, w1, w2, N0, N1, N2, BN)
            s, low = select(s0, s1, s2, number), select(l0, l1, l2, number)
            coming = _load_weights(w, s, low, first, outputs, GROUPS, BN, BG, BITS, EVEN)
            coming_1 = coming
            if GATED:
                coming_1 = _load_weights(w1, s1, l1, first, outputs, GROUPS, BN, BG, BITS, EVEN)
        if OVERLAP:
            tile = tl.where(prefetch > 0, further + prefetch * programs, TILES)
            _prefetch_tile(
                tile, w0, w1, w2, s0, s1, s2, l0, l1, l2, N0, N1, N2, GROUPS, BN, BITS, GATED
            )
        total = _multiply(this, row, BN, BG, PIECES, BITS)
        if GATED:
            # Both at once, because summing synchronizes the threads.
            total = tl.join(total, _multiply(this_1, row, BN, BG, PIECES, BITS))
            gate, up = tl.split(tl.sum(total, axis=0))
            gate = _epilogue(gate * root, epilogue, BITS, BIAS)
            found = silu(gate) * _epilogue(up * root, epilogue_1, BITS, BIAS)
        else:
            found = _epilogue(tl.sum(total, axis=0) * root, epilogue, BITS, BIAS)
        found = found.to(out.dtype.element_ty)
        if RESIDUAL:  # rounded before the sum, as in a separate step
            found = (found.to(tl.float32) + epilogue[2].to(tl.float32)).to(out.dtype.element_ty)
        tl.store(out + to + tl.arange(0, BN), found, mask=tl.arange(0, BN) < rows)
