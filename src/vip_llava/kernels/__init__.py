"""Kernels of a decoder step: one set of operations, one implementation for each kind of device.

`for_device` returns the module to use: `reference` (torch, any device) or `fused` (Triton, CUDA).
Both satisfy `Kernels`, so the caller writes a step once for all devices. `reference` documents each
operation.

This package knows tensors. It does not know models or requests.
Shape letters: M rows, K inputs, N outputs or new tokens, R sequences, Q query heads, H key/value
heads, D width of a head, P slots of the KV cache, W blocks of a sequence.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from vip_llava.kernels import reference
from vip_llava.kernels.values import (
    BLOCK_SIZE,
    DecodeBatch,
    Dense,
    Int4,
    Int8,
    Matrix,
    Norm,
    PrefillChunk,
)

__all__ = [
    "BLOCK_SIZE",
    "DecodeBatch",
    "Dense",
    "Int4",
    "Int8",
    "Kernels",
    "Matrix",
    "Norm",
    "PrefillChunk",
    "for_device",
]

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


class Kernels(Protocol):
    """The operations of an implementation; see `reference` for shapes and meaning."""

    CAPTURABLE: bool
    """Whether a CUDA graph may be captured of these."""

    def linear(
        self,
        x: Tensor,
        matrices: Sequence[Matrix],
        residual: Tensor | None = None,
        norm: Norm | None = None,
    ) -> Tensor: ...

    def swiglu(self, x: Tensor, gate: Matrix, up: Matrix, norm: Norm | None = None) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Pair: ...

    def rope_and_cache(
        self, qkv: Triple, rotary: Pair, cache: Pair, slot_mapping: Tensor
    ) -> Tensor: ...

    def decode_attention(
        self, qkv: Triple, rotary: Pair, cache: Pair, batch: DecodeBatch, scale: float
    ) -> Tensor: ...

    def prefill_attention(
        self, query: Tensor, cache: Pair, chunk: PrefillChunk, scale: float
    ) -> Tensor: ...


def for_device(device: torch.device) -> Kernels:
    """The Triton kernels for a CUDA device where they work, otherwise the reference."""
    return (_fused(device) if device.type == "cuda" else None) or reference


@functools.cache
def _fused(device: torch.device) -> Kernels | None:
    """The Triton kernels, after a trial run on the device; warns and returns None if it fails."""
    if find_spec("triton") is None:
        return None
    try:
        import vip_llava.kernels.fused as fused

        with torch.cuda.device(device):
            some = torch.ones((1, 32), device=device)
            fused.rms_norm(some, some[0], 1e-6).tolist()
    except Exception as error:  # no compiler, an unknown device, another Triton
        warnings.warn(f"falling back to torch, Triton kernels fail: {error}", stacklevel=3)
        return None
    return fused
