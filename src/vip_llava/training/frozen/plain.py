"""What lies between the products of a frozen layer, in plain torch: for any device, and as a measure.

Arithmetic is in float32 (float64 for such numbers) whatever the tensors' type. It knows rows of
numbers, no layers. Shape letters: T tokens, C width, I middle width, H heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_norm", "gate", "gate_backward", "norm_backward", "turn"]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [T, C] plus `more` as a new tensor, and that over its root mean square times weight [C]."""
    total = x.clone() if more is None else x + more
    wide = _wide(total)
    over = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return total, (wide * over).to(x.dtype) * weight


def norm_backward(slope: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """The slope of the norm's x [T, C] from that of its result, plus `residual`."""
    wide, lean = _wide(x), _wide(slope) * _wide(weight)
    over = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    along = (lean * wide).mean(-1, keepdim=True) * over.square()
    return ((lean - wide * along) * over + _wide(residual)).to(x.dtype)


def turn(
    x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False, inplace: bool = False
) -> Tensor:
    """Turn heads x [T, H x D] by angles [T, D] whose halves are alike; `back` turns the other way."""
    half = cos.shape[-1] // 2
    first, second = _wide(x).reshape(len(x), -1, 2, half).unbind(-2)
    c, s = (_wide(each)[:, None, :half] for each in (cos, sin))
    s = -s if back else s
    turned = torch.stack([first * c - second * s, second * c + first * s], dim=-2).flatten(1)
    return x.copy_(turned) if inplace else turned.to(x.dtype)


def gate(first: Tensor, second: Tensor) -> Tensor:
    """silu(first) * second, each [T, I]."""
    return (torch.nn.functional.silu(_wide(first)) * _wide(second)).to(first.dtype)


def gate_backward(slope: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of both factors of `gate`."""
    wide, lean = _wide(first), _wide(slope)
    share = torch.sigmoid(wide)
    silu = wide * share
    d_first = lean * _wide(second) * (share + silu * (1 - share))
    return d_first.to(first.dtype), (lean * silu).to(first.dtype)
