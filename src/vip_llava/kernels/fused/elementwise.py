"""Norms, SiLU, and rotary embedding with storing keys and values, as Triton kernels.

A decode step needs few of them, because they are fused into products and attention.
Shape letters: M rows, C width of a row, I half of a gate's width, R requests, Q query heads,
H key/value heads, D width of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.lang import release_next, silu, wait_previous
from vip_llava.kernels.fused.launch import options, power_of_two

__all__ = ["add_rms_norm", "rms_norm", "rope_and_cache", "silu_and_mul"]


@triton.jit
def _norm(
    x, residual, weight, out, total, eps, x_row,
    C: tl.constexpr, CP: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    row = tl.program_id(0)
    c = tl.arange(0, CP)
    inside = c < C
    value = tl.load(x + row * x_row + c, mask=inside, other=0.0)
    if ADD:
        more = tl.load(residual + row * C + c, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(value.dtype)
        tl.store(total + row * C + c, value, mask=inside)
    value = value.to(tl.float32)
    value *= 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / C + eps)
    value *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * C + c, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rows [M, K] over their root mean square, times weight [K]."""
    out = x.new_empty(x.shape)
    width = x.shape[1]
    _norm[(len(x),)](
        x, x, weight, out, out, eps, x.stride(0), C=width, CP=power_of_two(width), ADD=False,
        num_warps=_warps(width), **options(x.device),
    )  # fmt: skip
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and that sum."""
    out, total = x.new_empty(x.shape), x.new_empty(x.shape)
    width = x.shape[1]
    _norm[(len(x),)](
        x, residual.contiguous(), weight, out, total, eps, x.stride(0),
        C=width, CP=power_of_two(width), ADD=True, num_warps=_warps(width), **options(x.device),
    )  # fmt: skip
    return out, total


def _warps(width: int) -> int:
    return min(16, max(1, power_of_two(width) // 256))


@triton.jit
def _gate(gate_up, out, row_size, HALF: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < HALF
    gate = tl.load(gate_up + row * row_size + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_size + HALF + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * HALF + i, (silu(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[M, 2I] -> [M, I]: silu of the first half times the second."""
    rows, half = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, half))
    block = min(1024, power_of_two(half))
    grid = (rows, triton.cdiv(half, block))
    _gate[grid](gate_up, out, gate_up.stride(0), HALF=half, BLOCK=block, **options(gate_up.device))
    return out


@triton.jit
def _rope(
    q, k, v, cos, sin, keys, values, slots, out, q_row, k_row, v_row,
    Q: tl.constexpr, H: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BH: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program takes BH heads of a token: it rotates those of the query, rotates and stores those
    of the key, or stores those of the value. Both halves of a head are read once."""
    release_next(OVERLAP)
    wait_previous(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    query_parts: tl.constexpr = (Q + BH - 1) // BH
    kv_parts: tl.constexpr = (H + BH - 1) // BH
    b, d = tl.arange(0, BH), tl.arange(0, HALF)
    half: tl.constexpr = D // 2
    inside = d < half
    if part < query_parts:
        head = part * BH + b
        mask = (head < Q)[:, None] & inside[None, :]
        low, high = _rotated_halves(
            q + row * q_row + head[:, None] * D, cos + row * D, sin + row * D, d, half, mask
        )
        to = out + (row * Q + head[:, None]) * D + d[None, :]
        tl.store(to, low.to(out.dtype.element_ty), mask=mask)
        tl.store(to + half, high.to(out.dtype.element_ty), mask=mask)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if part < query_parts + kv_parts:
            head = (part - query_parts) * BH + b
            # Not `(...) & (slot >= 0)`: the interpreter of Triton 3.9 fails on a block and a scalar.
            mask = tl.where(slot >= 0, head < H, b < 0)[:, None] & inside[None, :]
            low, high = _rotated_halves(
                k + row * k_row + head[:, None] * D, cos + row * D, sin + row * D, d, half, mask
            )
            to = keys + (slot * H + head[:, None]) * D + d[None, :]
            tl.store(to, low.to(keys.dtype.element_ty), mask=mask)
            tl.store(to + half, high.to(keys.dtype.element_ty), mask=mask)
        else:
            head = (part - query_parts - kv_parts) * BH + b
            mask = tl.where(slot >= 0, head < H, b < 0)[:, None] & inside[None, :]
            source = v + row * v_row + head[:, None] * D + d[None, :]
            to = values + (slot * H + head[:, None]) * D + d[None, :]
            low = tl.load(source, mask=mask, other=0.0).to(tl.float32)
            high = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
            tl.store(to, low.to(values.dtype.element_ty), mask=mask)
            tl.store(to + half, high.to(values.dtype.element_ty), mask=mask)


@triton.jit
def _rotated_halves(states, cos, sin, d, half: tl.constexpr, mask):
    """Heads at `states` [BH, 1], rotated by their positions: both halves, in float32."""
    inside = d < half
    low = tl.load(states + d[None, :], mask=mask, other=0.0).to(tl.float32)
    high = tl.load(states + half + d[None, :], mask=mask, other=0.0).to(tl.float32)
    c = tl.load(cos + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    c_high = tl.load(cos + half + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    s_high = tl.load(sin + half + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    return low * c - high * s, high * c_high + low * s_high


def rope_and_cache(
    qkv: tuple[Tensor, Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    slot_mapping: Tensor,
) -> Tensor:
    """Rotate q and k by their positions and store k and v in the cache; returns the rotated q."""
    q, k, v = qkv
    tokens, heads, width = q.shape
    kv_heads = k.shape[1]
    out = q.new_empty(q.shape)
    together = min(16, power_of_two(heads))
    parts = triton.cdiv(heads, together) + 2 * triton.cdiv(kv_heads, together)
    _rope[(tokens, parts)](
        q, k, v, *rotary, *cache, slot_mapping, out, q.stride(0), k.stride(0), v.stride(0),
        Q=heads, H=kv_heads, D=width, HALF=power_of_two(width // 2), BH=together, num_warps=4,
        **options(q.device),
    )  # fmt: skip
    return out
