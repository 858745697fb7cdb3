"""A row of activations as bytes, and products of bytes, four at a time by the `dp4a` instruction.

A group of the row (as many inputs as 16 bytes of weights hold) is rounded to 16 bits, with its
largest value as 32512, and kept as two signed bytes an input: `256 * high + low`. Its error is at
most 1/65024 of the group's largest value, which 16-bit floats represent less exactly. Products of
integers are exact, so only their sum is rounded, in float32.

Shape letters: BN outputs, BG groups of four 32-bit words each. With the right layout a group is in
one thread, and splitting words costs nothing.
"""

# mypy: disable-error-code="assignment"
# The type of a name is decided when a kernel is compiled.

from __future__ import annotations

import triton
import triton.language as tl

from vip_llava.kernels.fused.launch import INTERPRETED

__all__ = ["int_products", "load_eights", "opaque", "quantize_row"]

_WIDE = tl.constexpr(INTERPRETED)
_MOST = tl.constexpr(32512.0)
_INTEGER = tl.constexpr(12583040.0)
"""1.5 * 2^23 + 128: a value added to it is rounded, and is (plus 128) in the lower bits."""
_LOW_HALVES = tl.constexpr(0x0F0F0F0F)
_HIGH_HALVES = tl.constexpr(-0x0F0F0F10)
_ONES = tl.constexpr(0x01010101)
_SIGNS = tl.constexpr(-0x7F7F7F80)


@triton.jit
def opaque(number):
    """The same numbers, without the compiler knowing that they are consecutive.

    It would otherwise assign several of them to one thread, to vectorize loads.
    """
    if _WIDE:
        return number
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [number], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _dot(a, b, total, SIGNED: tl.constexpr):
    """total + the products of four bytes each; b is signed."""
    if SIGNED:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return tl.inline_asm_elementwise(
        "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _four(words):
    """[BG, BN, 4] or [BG, 4] as four of one dimension less."""
    if len(words.shape) == 3:
        pairs = tl.reshape(words, (words.shape[0], words.shape[1], 2, 2))
    else:
        pairs = tl.reshape(words, (words.shape[0], 2, 2))
    even, odd = tl.split(pairs)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _dots(words, row, total, SIGNED: tl.constexpr):
    """total [BG, BN] + the products of 16 bytes each: words [BG, BN, 4], row [BG, 4] (signed)."""
    if _WIDE:
        for at in tl.static_range(4):
            left = ((words << (24 - 8 * at)) >> 24) if SIGNED else ((words >> (8 * at)) & 255)
            right = (row << (24 - 8 * at)) >> 24
            total += tl.sum(left * right[:, None, :], axis=2)
        return total
    w, x = _four(words), _four(row)
    for i in tl.static_range(4):
        total = _dot(w[i], x[i][:, None], total, SIGNED)
    return total


@triton.jit
def _lower(a, b):
    """Bytes 0 and 1 of both: a0 b0 a1 b1."""
    if _WIDE:
        return (a & 255) | ((b & 255) << 8) | ((a & 0xFF00) << 8) | ((b & 0xFF00) << 16)
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x5140;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _halves(a, b):
    """The lower halves of both as one word, and the upper halves."""
    if _WIDE:
        return (a & 0xFFFF) | (b << 16), ((a >> 16) & 0xFFFF) | (b & -0x10000)
    low = tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x5410;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )
    high = tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x7632;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )
    return low, high


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_eights(x, g, GROUPS: tl.constexpr, BITS: tl.constexpr):
    """Groups g [BG] of a row as two (8 bits) or four tensors [BG, 8]."""
    there = (g < GROUPS)[:, None]
    at = x + (g[:, None] * (128 // BITS) + tl.arange(0, 8)[None, :])
    parts = ()
    for first in tl.static_range(0, 128 // BITS, 8):
        parts += (tl.load(at + first, mask=there, other=0.0),)
    return parts


@triton.jit
def _normed(values, weight, squares, NORM: tl.constexpr):
    """Eight inputs of each group [BG, 8] times the norm's weight; squares plus theirs."""
    values = values.to(tl.float32)
    if NORM:
        squares += values * values
        values *= weight.to(tl.float32)
    return values, squares


@triton.jit
def _rounded(values, factor):
    whole = values * factor[:, None] + _INTEGER
    return whole.to(tl.int32, bitcast=True)


@triton.jit
def quantize_row(parts, norm, squares, BG: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr):
    """Quantize a part of a row times the norm's weight (both from `load_eights`).

    Returns its words (for `int_products`), the factor [BG] of their products, their sums [BG], and
    squares [BG, 8] plus those of the part.
    """
    a, squares = _normed(parts[0], norm[0], squares, NORM)
    b, squares = _normed(parts[1], norm[1], squares, NORM)
    most = _larger(tl.abs(a), tl.abs(b))
    if BITS == 4:
        c, squares = _normed(parts[2], norm[2], squares, NORM)
        d, squares = _normed(parts[3], norm[3], squares, NORM)
        most = _larger(most, _larger(tl.abs(c), tl.abs(d)))
    most = tl.reduce(most, 1, _larger)
    factor = _MOST / tl.maximum(most, 1e-30)
    step = most / _MOST
    sums = step
    if BITS == 8:
        low_a, high_a = _in_order(_rounded(a, factor), BG)
        low_b, high_b = _in_order(_rounded(b, factor), BG)
        words = (_beside(high_a, high_b, BG), _beside(low_a, low_b, BG))
    else:
        first = _lower(_rounded(a, factor), _rounded(b, factor))
        second = _lower(_rounded(c, factor), _rounded(d, factor))
        low, high = _halves(first, second)
        low_even, low_odd = tl.split(tl.reshape(low ^ _SIGNS, (BG, 4, 2)))
        high_even, high_odd = tl.split(tl.reshape(high, (BG, 4, 2)))
        words = (high_even, high_odd, low_even, low_odd)
        ones = tl.full((BG, 1, 4), _ONES, tl.int32)
        whole = tl.zeros((BG, 1), tl.int32)
        whole = _dots(ones, high_odd, _dots(ones, high_even, whole, True), True) * 256
        whole = _dots(ones, low_odd, _dots(ones, low_even, whole, True), True)
        sums = tl.reshape(whole, (BG,)).to(tl.float32) * step
        step = step / 16  # half of the products use sixteen times the weights
    return words, step, sums, squares


@triton.jit
def _in_order(bits, BG: tl.constexpr):
    """Eight integers of each group as two words of low bytes and two of high ones [BG, 2]."""
    even, odd = tl.split(tl.reshape(bits, (BG, 2, 2, 2)))
    first, second = tl.split(_lower(even, odd))
    low, high = _halves(first, second)
    return low ^ _SIGNS, high


@triton.jit
def _beside(a, b, BG: tl.constexpr):
    """Two words of each group beside two more: [BG, 4]."""
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (BG, 4))


@triton.jit
def int_products(weights, row, BG: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr):
    """Words [BG, BN, 4] of weights times those of a row: sums over each group, float32 [BG, BN].

    Weights of 4 bits are levels from 0 to 15; their result is 16 times the sum.
    """
    total = tl.zeros((BG, BN), tl.int32)
    if BITS == 8:
        total = _dots(weights, row[0], total, True) * 256
        total = _dots(weights, row[1], total, True)
    else:
        lower, upper = weights & _LOW_HALVES, weights & _HIGH_HALVES
        total = _dots(lower, row[0], total, False) * 16
        total = _dots(upper, row[1], total, False) * 256
        total = _dots(upper, row[3], total, False)
        total += _dots(lower, row[2], tl.zeros((BG, BN), tl.int32), False) * 16
    return total.to(tl.float32)
