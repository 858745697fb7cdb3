"""Rows of numbers to 8 bits with a scale of their own, as Triton kernels: also norms and gates.

A row's scale is known when all of it was seen, so rows are gone through twice where they are too
long to be held; what was just read is still near. Shape letters: T rows, C width, M middle width;
A, B, N widths of up to three pieces that share a row's scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.setting import power_of_two

__all__ = ["add_norm", "gate", "gate_backward", "narrow"]

Narrow = tuple[Tensor, Tensor]
_LARGEST = 448.0
_BLOCK = 2048


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


@triton.jit
def _add_norm(
    x, more, weight, total, out, scales, eps, most, C: tl.constexpr, CP: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, CP)
    inside = c < C
    row = tl.program_id(0).to(tl.int64)
    at = row * C + c
    value = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        other = tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + other).to(total.dtype.element_ty)
    tl.store(total + at, value, mask=inside)
    wide = value.to(tl.float32)
    wide *= 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / C + eps)
    wide *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    high = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-30)
    tl.store(scales + row, high / most)
    tl.store(out + at, (wide * (most / high)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(first, second, at, inside):
    gate = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _gate(first, second, out, scales, most, M: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    high = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, M, BLOCK):
        i = start + block
        high = tl.maximum(high, tl.abs(_gated(first, second, row * M + i, i < M)))
    top = tl.maximum(tl.max(high, axis=0), 1e-30)
    tl.store(scales + row, top / most)
    over = most / top
    for start in tl.static_range(0, M, BLOCK):
        i = start + block
        made = _gated(first, second, row * M + i, i < M) * over
        tl.store(out + row * M + i, made.to(out.dtype.element_ty), mask=i < M)


@triton.jit
def _slopes(slope, first, second, at, inside):
    lean = tl.load(slope + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * share
    return lean * up * (share + silu * (1.0 - share)), lean * silu


@triton.jit
def _gate_backward(
    slope, first, second, out, scales, most, M: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    high = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, M, BLOCK):
        i = start + block
        one, other = _slopes(slope, first, second, row * M + i, i < M)
        high = tl.maximum(high, tl.maximum(tl.abs(one), tl.abs(other)))
    top = tl.maximum(tl.max(high, axis=0), 1e-30)
    tl.store(scales + row, top / most)
    over = most / top
    for start in tl.static_range(0, M, BLOCK):
        i = start + block
        one, other = _slopes(slope, first, second, row * M + i, i < M)
        at = out + row * M * 2 + i
        tl.store(at, (one * over).to(out.dtype.element_ty), mask=i < M)
        tl.store(at + M, (other * over).to(out.dtype.element_ty), mask=i < M)


def _empty(like: Tensor, width: int) -> tuple[Tensor, Tensor]:
    values = like.new_empty(len(like), width, dtype=torch.float8_e4m3fn)
    return values, like.new_empty(len(like), 1, dtype=torch.float32)


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Narrow]:
    """As in `plain`, the norm in 8 bits."""
    x, width = x.contiguous(), x.shape[1]
    other = x if more is None else more.contiguous()
    total, made = x.new_empty(x.shape), _empty(x, width)
    _add_norm[(len(x),)](
        x, other, weight, total, *made, eps, _LARGEST, C=width, CP=power_of_two(width),
        ADD=more is not None, num_warps=min(16, max(1, power_of_two(width) // 512)),
    )  # fmt: skip
    return total, made


def gate(first: Tensor, second: Tensor) -> Narrow:
    """As in `plain`, in 8 bits."""
    made, width = _empty(first, first.shape[1]), first.shape[1]
    block = min(power_of_two(width), _BLOCK)
    _gate[(len(first),)](first, second, *made, _LARGEST, M=width, BLOCK=block, num_warps=8)
    return made


def gate_backward(slope: Tensor, first: Tensor, second: Tensor) -> Narrow:
    """As in `plain`, in 8 bits, both slopes side by side: [T, 2 M]."""
    width = first.shape[1]
    made, block = _empty(first, 2 * width), min(power_of_two(width), _BLOCK)
    _gate_backward[(len(first),)](
        slope.contiguous(), first, second, *made, _LARGEST, M=width, BLOCK=block, num_warps=8
    )
    return made


def narrow(pieces: Sequence[Tensor]) -> Narrow:
    """Up to three pieces [T, ..] side by side as float8 (e4m3) and each row's scale [T, 1]."""
    given = [piece.contiguous() for piece in pieces]
    widths = [piece.shape[1] for piece in given] + [0] * (3 - len(given))
    first, made = given[0], _empty(given[0], sum(widths))
    _narrow[(len(first),)](
        *(given + [first] * (3 - len(given))), *made, _LARGEST,
        A=widths[0], B=widths[1], N=widths[2], BLOCK=min(power_of_two(max(widths)), _BLOCK),
        num_warps=8,
    )  # fmt: skip
    return made
