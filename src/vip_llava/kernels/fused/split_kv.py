"""Split-KV attention: the tokens of a sequence split over several programs, then combined.

Shape letters: R sequences, Q query heads, H key/value heads, D width of a head, S splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.launch import power_of_two

__all__ = ["NEVER", "combine_splits", "counters", "is_last_split", "load_tile", "split_range"]

NEVER = tl.constexpr(-1.0e30)
"""Stands for minus infinity: differences of it are numbers."""


@triton.jit
def split_range(lengths, row, split, S: tl.constexpr, BL: tl.constexpr):
    """Length of a sequence, and the first token and the end of one of its splits."""
    length = tl.load(lengths + row)
    # Whole tiles for each split, so that tiles are aligned to blocks.
    size = ((length + S * BL - 1) // (S * BL)) * BL
    begin = split * size
    return length, begin, tl.minimum(begin + size, length)


@triton.jit
def load_tile(
    keys, values, table, head, begin, end, d, offset,
    H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys and values [BL, DP] of the tokens from `begin`, and which of them are before `end`."""
    token = begin + offset
    seen = token < end
    block = tl.load(table + token // BLOCK, mask=seen, other=0)
    slot = block.to(tl.int64) * BLOCK + token % BLOCK
    at = (slot[:, None] * H + head) * D + d[None, :]
    mask = seen[:, None] & (d < D)[None, :]
    key = tl.load(keys + at, mask=mask, other=0.0)
    value = tl.load(values + at, mask=mask, other=0.0)
    return key, value, seen


@triton.jit
def is_last_split(counter, S: tl.constexpr):
    """Whether all S splits are stored now; true for one program, which resets the counter."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == S - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return last


@triton.jit
def combine_splits(
    partial, peaks, totals, out, index, D: tl.constexpr, DP: tl.constexpr, S: tl.constexpr
):  # fmt: skip
    """The weighted sum of the splits [S, D] of one head of one sequence; S is a power of two."""
    s, d = tl.arange(0, S), tl.arange(0, DP)
    # Other multiprocessors wrote them: the L1 cache of this one may be stale.
    peak = tl.load(peaks + index * S + s, cache_modifier=".cg")
    decay = tl.exp(peak - tl.max(peak, axis=0))
    total = tl.sum(tl.load(totals + index * S + s, cache_modifier=".cg") * decay, axis=0)
    at = (index * S + s)[:, None] * D + d[None, :]
    acc = tl.load(partial + at, mask=(d < D)[None, :], other=0.0, cache_modifier=".cg")
    result = tl.sum(acc * decay[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out + index * D + d, result.to(out.dtype.element_ty), mask=d < D)


_zeros: dict[tuple[int, torch.device, int], Tensor] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """Zeros for `is_last_split`; every kernel leaves them zero.

    Kernels on other streams, which may run at the same time, get others. They are never freed,
    since graphs keep their address.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (power_of_two(count), device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _zeros:
        made = torch.zeros(key[0], dtype=torch.int32, device=device)
        if torch.cuda.is_current_stream_capturing():
            return made  # its zeroing is captured too
        _zeros[key] = made
    return _zeros[key]
