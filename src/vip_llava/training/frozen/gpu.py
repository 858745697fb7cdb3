"""`plain` as Triton kernels: each reads what it needs once and writes what it makes once.

Shape letters: T tokens, C width, H heads, D width of a head; P behind a letter: the power of two
that is not less.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.setting import power_of_two

__all__ = ["add_norm", "gate", "gate_backward", "norm_backward", "turn"]

_GATED = 2048


@triton.jit
def _add_norm(
    x, more, weight, total, out, eps, C: tl.constexpr, CP: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    c = tl.arange(0, CP)
    inside = c < C
    at = tl.program_id(0).to(tl.int64) * C + c
    value = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        other = tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + other).to(total.dtype.element_ty)
    tl.store(total + at, value, mask=inside)
    wide = value.to(tl.float32)
    wide *= 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / C + eps)
    wide = wide.to(out.dtype.element_ty).to(tl.float32)
    wide *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, wide.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(
    slope, x, weight, residual, out, eps, C: tl.constexpr, CP: tl.constexpr
):  # fmt: skip
    c = tl.arange(0, CP)
    inside = c < C
    at = tl.program_id(0).to(tl.int64) * C + c
    wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    lean = tl.load(slope + at, mask=inside, other=0.0).to(tl.float32)
    rest = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    lean *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    over = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / C + eps)
    along = tl.sum(lean * wide, axis=0) / C * over * over
    made = (lean - wide * along) * over + rest
    tl.store(out + at, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(
    x, cos, sin, out, sign, H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    heads = tl.arange(0, HP)
    half = d < D // 2
    inside = (heads < H)[:, None] & half[None, :]
    c = tl.load(cos + token * D + d, mask=half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * D + d, mask=half, other=0.0).to(tl.float32)[None, :] * sign
    at = token * H * D + heads[:, None] * D + d[None, :]
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + D // 2, mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + at, (first * c - second * s).to(kind), mask=inside)
    tl.store(out + at + D // 2, (second * c + first * s).to(kind), mask=inside)


@triton.jit
def _gate(first, second, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    made = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + at, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_backward(slope, first, second, d_first, d_second, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    lean = tl.load(slope + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * share
    kind = d_first.dtype.element_ty
    tl.store(d_first + at, (lean * up * (share + silu * (1.0 - share))).to(kind), mask=inside)
    tl.store(d_second + at, (lean * silu).to(kind), mask=inside)


def _warps(width: int) -> int:
    """Eight numbers of 16 bits a thread are 16 bytes; twice that keeps more of them on their way."""
    return min(16, max(1, power_of_two(width) // 512))


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As in `plain`."""
    x, width = x.contiguous(), x.shape[1]
    other = x if more is None else more.contiguous()
    total, out = x.new_empty(x.shape), x.new_empty(x.shape)
    _add_norm[(len(x),)](
        x, other, weight, total, out, eps, C=width, CP=power_of_two(width), ADD=more is not None,
        num_warps=_warps(width),
    )  # fmt: skip
    return total, out


def norm_backward(slope: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """As in `plain`."""
    out, width = x.new_empty(x.shape), x.shape[1]
    _norm_backward[(len(x),)](
        slope.contiguous(), x, weight, residual.contiguous(), out, eps,
        C=width, CP=power_of_two(width), num_warps=_warps(width),
    )  # fmt: skip
    return out


def turn(
    x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False, inplace: bool = False
) -> Tensor:
    """As in `plain`."""
    x, width = x.contiguous(), cos.shape[1]
    heads = x.shape[1] // width
    out = x if inplace else x.new_empty(x.shape)
    _turn[(len(x),)](
        x, cos, sin, out, -1.0 if back else 1.0, H=heads, HP=power_of_two(heads), D=width,
        DP=power_of_two(width // 2), num_warps=_warps(heads * width // 2),
    )  # fmt: skip
    return out


def gate(first: Tensor, second: Tensor) -> Tensor:
    """As in `plain`."""
    out, count = first.new_empty(first.shape), first.numel()
    _gate[(triton.cdiv(count, _GATED),)](first, second, out, count, BLOCK=_GATED, num_warps=8)
    return out


def gate_backward(slope: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """As in `plain`."""
    made, count = (first.new_empty(first.shape), first.new_empty(first.shape)), first.numel()
    _gate_backward[(triton.cdiv(count, _GATED),)](
        slope.contiguous(), first, second, *made, count, BLOCK=_GATED, num_warps=8
    )
    return made
