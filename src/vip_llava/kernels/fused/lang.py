"""Device functions that several Triton kernels use."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vip_llava.kernels.fused.launch import INTERPRETED

__all__ = [
    "cast",
    "dot",
    "locate_tile",
    "prefetch_rows",
    "release_next",
    "rotated",
    "select",
    "silu",
    "wait_previous",
]

EVEN_OFFSET = tl.constexpr(128.0)
ODD_OFFSET = tl.constexpr(2048.0)
"""What `unpack_level` adds to the level, for even and odd positions in the word."""
_WIDE = tl.constexpr(INTERPRETED)


@triton.jit
def release_next(OVERLAP: tl.constexpr):
    """Let the next kernel start; it waits where it needs results of this one. Call it first."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_previous(OVERLAP: tl.constexpr):
    """Wait for all kernels before this one. Only what no kernel writes may be read earlier.

    Every program must call it, or the next kernel would not wait for the ones before this one.
    """
    if OVERLAP:
        gdc_wait()


@triton.jit
def prefetch_rows(base, first, outputs, K: tl.constexpr, BN: tl.constexpr):
    """Prefetch BN whole rows of K elements from `first` on into the L2 cache, if they all exist.

    One thread requests them all: the hardware would serialize many addresses. Does nothing where
    the size is not a multiple of 16 bytes.
    """
    size: tl.constexpr = BN * K * (base.dtype.element_ty.primitive_bitwidth // 8)
    if size % 16 == 0:  # noqa: SIM102 (one is decided when this is compiled)
        if first + BN <= outputs:
            tl.inline_asm_elementwise(
                """{
                .reg .pred one;
                .reg .b32 thread;
                mov.u32 thread, %tid.x;
                setp.eq.u32 one, thread, 0;
                @one cp.async.bulk.prefetch.L2.global [$1], $2;
                mov.u32 $0, 0;
                }""",
                "=r,l,r",
                [base + first.to(tl.int64) * K, tl.full((), size, tl.int32)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def dot(a, b, total):
    """total + a b, accumulated in float32. The interpreter cannot multiply bfloat16."""
    if _WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def locate_tile(
    tile, w0, w1, w2, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BN: tl.constexpr
):
    """The matrix of a tile of outputs, of up to three side by side; N of an absent one is 0.

    Returns its pointer, number and outputs N, the first output of the tile, and the outputs of the
    matrices before it.
    """
    tiles0: tl.constexpr = (N0 + BN - 1) // BN
    tiles1: tl.constexpr = (N1 + BN - 1) // BN
    w, number, outputs, before = w0, 0, N0, 0
    if N1 > 0:
        if tile >= tiles0 + tiles1:
            w, number, outputs, before = w2, 2, N2, N0 + N1
            tile -= tiles0 + tiles1
        elif tile >= tiles0:
            w, number, outputs, before = w1, 1, N1, N0
            tile -= tiles0
    return w, number, outputs, tile * BN, before


@triton.jit
def select(p0, p1, p2, number):
    """The pointer of a matrix, by its number."""
    p = p0
    if number == 1:
        p = p1
    if number == 2:
        p = p2
    return p


@triton.jit
def silu(x):
    """x times its logistic function."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def rotated(states, cos, sin, at, d, D: tl.constexpr, inside):
    """Elements `d` of vectors at `states + at`, rotated by their positions, in float32."""
    half: tl.constexpr = D // 2
    other = tl.where(d < half, d + half, d - half)
    straight = tl.load(states + at + d, mask=inside, other=0.0).to(tl.float32)
    crossed = tl.load(states + at + other, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + d, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + d, mask=inside, other=0.0).to(tl.float32)
    return straight * c + tl.where(d < half, -crossed, crossed) * s


@triton.jit
def cast(weight, kind: tl.constexpr):
    """Weights in another dtype. The interpreter cannot convert int8 to bfloat16."""
    if _WIDE:
        weight = weight.to(tl.float32)
    return weight.to(kind)


@triton.jit
def unpack_level(word, j: tl.constexpr):
    """Four bits of each 32-bit word as float32, plus `EVEN_OFFSET` or `ODD_OFFSET`.

    The bits become part of the mantissa of a larger number: one logical operation and for half of
    them a shift, instead of a conversion, which takes as long as several operations.
    """
    if j % 2 == 0:
        word = word << (16 - 4 * j) if j < 4 else word >> (4 * j - 16)
        return _in_mantissa(word, 0x000F0000, 0x43000000)
    word = word << (12 - 4 * j) if j < 3 else word >> (4 * j - 12)
    return _in_mantissa(word, 0x0000F000, 0x45000000)


@triton.jit
def _in_mantissa(word, MASK: tl.constexpr, NUMBER: tl.constexpr):
    if _WIDE:
        bits = (word & MASK) | NUMBER
    else:
        # The compiler would use two operations.
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;",
            "=r,r,r,r",
            [word, tl.full(word.shape, MASK, tl.int32), tl.full(word.shape, NUMBER, tl.int32)],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return bits.to(tl.float32, bitcast=True)
