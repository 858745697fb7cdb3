"""Rows of numbers to 8 bits with a scale of their own, as a Triton kernel.

Shape letters: T rows, A, B, N widths of up to three pieces that share a row's scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.setting import power_of_two

__all__ = ["narrow"]

_LARGEST = 448.0


@triton.jit
def _highest(x, row, width: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    high = tl.zeros((BLOCK,), tl.float32)
    for first in tl.static_range(0, width, BLOCK):
        inside = first + at < width
        value = tl.load(x + row * width + first + at, mask=inside, other=0.0)
        high = tl.maximum(high, tl.abs(value.to(tl.float32)))
    return tl.max(high, axis=0)


@triton.jit
def _store(x, out, row, whole, before, over, width: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    for first in tl.static_range(0, width, BLOCK):
        inside = first + at < width
        value = tl.load(x + row * width + first + at, mask=inside, other=0.0).to(tl.float32)
        made = (value * over).to(out.dtype.element_ty)
        tl.store(out + row * whole + before + first + at, made, mask=inside)


@triton.jit
def _narrow(
    x, y, z, out, scales, most, A: tl.constexpr, B: tl.constexpr, N: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    high = _highest(x, row, A, BLOCK)
    if B > 0:
        high = tl.maximum(high, _highest(y, row, B, BLOCK))
    if N > 0:
        high = tl.maximum(high, _highest(z, row, N, BLOCK))
    high = tl.maximum(high, 1e-30)
    tl.store(scales + row, high / most)
    over = most / high
    _store(x, out, row, A + B + N, 0, over, A, BLOCK)
    if B > 0:
        _store(y, out, row, A + B + N, A, over, B, BLOCK)
    if N > 0:
        _store(z, out, row, A + B + N, A + B, over, N, BLOCK)


def narrow(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Up to three pieces [T, ..] side by side as float8 (e4m3) and each row's scale [T, 1]."""
    given = [piece.contiguous() for piece in pieces]
    widths = [piece.shape[1] for piece in given] + [0] * (3 - len(given))
    first, rows = given[0], len(given[0])
    out = first.new_empty(rows, sum(widths), dtype=torch.float8_e4m3fn)
    scales = first.new_empty(rows, 1, dtype=torch.float32)
    block = min(power_of_two(max(widths)), 4096)
    _narrow[(rows,)](
        *(given + [first] * (3 - len(given))), out, scales, _LARGEST,
        A=widths[0], B=widths[1], N=widths[2], BLOCK=block, num_warps=8,
    )  # fmt: skip
    return out, scales
