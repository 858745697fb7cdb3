"""Parts of a text that several programs attend to: where they lie, and how they become one.

Shape letters: R requests, Q query heads, H key/value heads, D width of a head, S parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vip_llava.kernels.fused.context import power_of_two

__all__ = ["EVER", "NEVER", "combine", "counters", "last", "part_of", "tile"]

NEVER = tl.constexpr(-1.0e30)
"""Stands for minus infinity: differences of it are numbers."""
EVER = 1 << 30
"""Tokens of a window that nothing falls out of."""


@triton.jit
def part_of(lengths, row, part, S: tl.constexpr, BL: tl.constexpr, window):
    """Length of a request, the first token it sees, and where one of its parts begins and ends."""
    length = tl.load(lengths + row)
    first = tl.maximum(length - window, 0)
    # Whole tiles for a part; the beginning is rounded down, so that tiles lie on blocks.
    start = first // BL * BL
    size = ((length - start + S * BL - 1) // (S * BL)) * BL
    begin = start + part * size
    return length, first, begin, tl.minimum(begin + size, length)


@triton.jit
def tile(
    keys, values, table, head, at, first, end, d, slot,
    H: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Keys and values [BL, DP] of the tokens from `at`, and which of them count."""
    token = at + slot
    seen = (token >= first) & (token < end)
    block = tl.load(table + token // TOKENS, mask=seen, other=0)
    place = block.to(tl.int64) * TOKENS + token % TOKENS
    where = (place[:, None] * H + head) * D + d[None, :]
    mask = seen[:, None] & (d < D)[None, :]
    key = tl.load(keys + where, mask=mask, other=0.0)
    value = tl.load(values + where, mask=mask, other=0.0)
    return key, value, seen


@triton.jit
def last(done, S: tl.constexpr):
    """Whether all S parts are stored now that this one is; true for one program, which clears up."""
    tl.debug_barrier()
    mine = tl.atomic_add(done, 1) == S - 1
    if mine:
        tl.store(done, 0)
    tl.debug_barrier()
    return mine


@triton.jit
def combine(
    parts, most, weight, out, index, D: tl.constexpr, DP: tl.constexpr, S: tl.constexpr
):  # fmt: skip
    """The parts [S, D] of one head of one request, weighed; S is a power of two."""
    s, d = tl.arange(0, S), tl.arange(0, DP)
    # Other processors wrote them: what is cached near this one may be older.
    high = tl.load(most + index * S + s, cache_modifier=".cg")
    fade = tl.exp(high - tl.max(high, axis=0))
    total = tl.sum(tl.load(weight + index * S + s, cache_modifier=".cg") * fade, axis=0)
    where = (index * S + s)[:, None] * D + d[None, :]
    found = tl.load(parts + where, mask=(d < D)[None, :], other=0.0, cache_modifier=".cg")
    result = tl.sum(found * fade[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out + index * D + d, result.to(out.dtype.element_ty), mask=d < D)


_zeros: dict[tuple[int, torch.device, int], Tensor] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """Zeros for `last`, which every kernel leaves as zeros.

    Kernels of other streams, which may run at the same time, have others. Graphs keep the address,
    so they stay for good.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (power_of_two(count), device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _zeros:
        made = torch.zeros(key[0], dtype=torch.int32, device=device)
        if torch.cuda.is_current_stream_capturing():
            return made  # a part of the graph, which clears it each time
        _zeros[key] = made
    return _zeros[key]
