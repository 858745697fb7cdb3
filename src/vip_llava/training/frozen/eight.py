"""Products of frozen weights in 8 bits (float8, e4m3), for who trades exactness for speed.

Every row of what goes in has a scale, and so has every row (forward) or column (backward) of a
weight, so one large number spoils no other row. Weights are kept in both forms beside the exact
ones, which stay what they are: once more as many bytes as in 16 bits. Sums are float32. What is
rounded is a sixteenth of a number at most, on both sides of a product; `docs/performance.md`
says what that does to losses and slopes.

On other devices the same numbers are rounded and then multiplied exactly, to see what comes of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vip_llava.training.frozen import plain

__all__ = ["Eight"]

Narrow = tuple[Tensor, Tensor]
_LARGEST = 448.0
_KIND = torch.float8_e4m3fn


class Eight:
    """`Products` (see `layer`) in 8 bits. Weights are rounded when they are first used."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[nn.Linear, dict[str, tuple[int, Narrow]]]
        self._kept = weakref.WeakKeyDictionary()

    def add_norm(
        self, x: Tensor, more: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Narrow]:
        """As `Products`."""
        if x.device.type == "cuda":
            return cast("tuple[Tensor, Narrow]", _kernels().add_norm(x, more, weight, eps))
        total, normed = plain.add_norm(x, more, weight, eps)
        return total, self.given([normed])

    def gate(self, first: Tensor, second: Tensor) -> Narrow:
        """As `Products`."""
        if first.device.type == "cuda":
            return cast("Narrow", _kernels().gate(first, second))
        return self.given([plain.gate(first, second)])

    def gate_backward(self, slope: Tensor, first: Tensor, second: Tensor) -> Narrow:
        """As `Products`: one scale for both slopes of a row."""
        if first.device.type == "cuda":
            return cast("Narrow", _kernels().gate_backward(slope, first, second))
        return self.given(plain.gate_backward(slope, first, second))

    def given(self, pieces: Sequence[Tensor]) -> Narrow:
        """As `Products`: pieces [T, ..] side by side, one scale for a row of them."""
        if pieces[0].device.type == "cuda":
            return cast("Narrow", _kernels().narrow(pieces))
        whole = torch.cat(list(pieces), dim=1).float()
        high = whole.abs().amax(1, keepdim=True).clamp(min=1e-30)
        return (whole * (_LARGEST / high)).to(_KIND), high / _LARGEST

    def forth(self, x: Narrow, linears: Sequence[nn.Linear]) -> list[Tensor]:
        """As `Products`."""
        return [
            _times(x, self._of([linear], "forth", lambda w: w), linear.weight.dtype, quick=True)
            for linear in linears
        ]

    def back(self, slopes: Narrow, linears: Sequence[nn.Linear]) -> Tensor:
        """As `Products`, as one product of slopes and weights side by side."""
        weight = self._of(linears, "back", lambda w: w.t().contiguous())
        return _times(slopes, weight, linears[0].weight.dtype, quick=False)

    def _of(
        self, linears: Sequence[nn.Linear], name: str, turned: Callable[[Tensor], Tensor]
    ) -> Narrow:
        """The weights one below the other, turned and rounded; anew if one was changed."""
        kept = self._kept.setdefault(linears[0], {})
        now = hash(tuple((linear.weight.data_ptr(), linear.weight._version) for linear in linears))
        if name not in kept or kept[name][0] != now:
            whole = torch.cat([linear.weight.detach() for linear in linears])
            kept[name] = now, self.given([turned(whole)])
        return kept[name][1]


def _kernels() -> Any:
    from vip_llava.training.frozen import eight_gpu

    return eight_gpu


def _times(x: Narrow, weight: Narrow, dtype: torch.dtype, *, quick: bool) -> Tensor:
    """x [T, K] times the turned weight [N, K]; `quick`: with fewer bits between the sums."""
    if x[0].device.type == "cuda":
        made: Tensor = torch._scaled_mm(
            x[0], weight[0].t(), x[1], weight[1].t(), out_dtype=dtype, use_fast_accum=quick
        )
        return made
    wide = [values.float() * scales for values, scales in (x, weight)]
    return (wide[0] @ wide[1].t()).to(dtype)
