"""The arithmetic of decoding few tokens: one set of operations, one implementation for a device.

`for_device` gives the kernels of a device: `plain` (torch, any device) or `fused` (Triton, CUDA).
Both are modules that satisfy `Kernels`, so a caller writes one step for all devices.

This package knows tensors, neither models nor requests.
Shape letters: M rows, K inputs, N outputs, R requests, Q query heads, H key/value heads, D width of
a head, P places of the memory, W blocks of a request.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from vip_llava.kernels import reference as plain
from vip_llava.kernels.values import BLOCK_TOKENS, Dense, Int4, Int8, Matrix, Norm

__all__ = ["BLOCK_TOKENS", "Dense", "Int4", "Int8", "Kernels", "Matrix", "Norm", "for_device"]


class Kernels(Protocol):
    """What each implementation gives. `plain` says what each operation means."""

    CAPTURABLE: bool
    """Whether a CUDA graph may be made of these."""

    def rows(
        self,
        x: Tensor,
        matrices: Sequence[Matrix],
        residual: Tensor | None = None,
        norm: Norm | None = None,
    ) -> Tensor:
        """x [M, K], normed if asked, times each matrix, side by side, plus residual: [M, all N]."""

    def gated_rows(self, x: Tensor, gate: Matrix, up: Matrix, norm: Norm | None = None) -> Tensor:
        """silu(x gate) * (x up): [M, K] -> [M, N]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows [M, K] over their root mean square, times weight [K]."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum."""

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """[M, 2I] -> [M, I]: silu of the first half times the second."""

    def rotate_and_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
    ) -> Tensor:
        """Turn q and k by their positions and store k and v at their places; gives the turned q."""

    def paged_decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        lengths: Tensor,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Attention of one new token of each request over its own places: [R, Q, D]."""

    def paged_prompt(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        span: Tensor,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Attention of new tokens of one text, whose keys and values are stored: [N, Q, D]."""

    def paged_step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        table: Tensor,
        lengths: Tensor,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """`rotate_and_store`, then `paged_decode` with what it gives."""


def for_device(device: torch.device) -> Kernels:
    """The kernels for tensors of a device: Triton's for CUDA where they work, else plain."""
    return (_fused(device) if device.type == "cuda" else None) or plain


@functools.cache
def _fused(device: torch.device) -> Kernels | None:
    """Triton's kernels after one of them was tried on the device; says so if they don't work."""
    if find_spec("triton") is None:
        return None
    try:
        import vip_llava.kernels.fused as fused

        with torch.cuda.device(device):
            some = torch.ones((1, 32), device=device)
            fused.rms_norm(some, some[0], 1e-6).tolist()
    except Exception as error:  # no compiler, an unknown device, another Triton
        warnings.warn(f"plain kernels are used, because Triton's fail: {error}", stacklevel=3)
        return None
    return fused
