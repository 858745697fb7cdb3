"""Products of few rows with weights in their own format; more rows use the library's products.

This is the host side: what is launched, and how. The kernels are in `gemv`, `int_gemv` and
`small_gemm`.
Shape letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from vip_llava.kernels import reference
from vip_llava.kernels.fused import tuned_configs
from vip_llava.kernels.fused.elementwise import rms_norm, silu_and_mul
from vip_llava.kernels.fused.gemv import gemv
from vip_llava.kernels.fused.int_gemv import int_gemv
from vip_llava.kernels.fused.launch import num_processors, options, power_of_two
from vip_llava.kernels.fused.small_gemm import small_gemm, small_gemm_int4
from vip_llava.kernels.values import Dense, Int4, Int8, Matrix, Norm

__all__ = ["linear", "swiglu"]


def linear(
    x: Tensor,
    matrices: Sequence[Matrix],
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """x [M, K], normed if given, times each matrix, side by side, plus residual: [M, all N]."""
    bits = _supported_bits(x, matrices)
    fits = len(matrices) <= 3 and (residual is None or residual.is_contiguous())
    if fits and len(x) <= _max_rows(x, bits):
        return _launch(x, matrices, bits, residual, norm, gated=False)
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    return _by_library(x, matrices, residual)


def swiglu(x: Tensor, gate: Matrix, up: Matrix, norm: Norm | None = None) -> Tensor:
    """silu(x gate) * (x up), x normed if given: [M, K] -> [M, N]."""
    bits = _supported_bits(x, [gate, up])
    if len(x) <= _max_rows(x, bits):
        return _launch(x, [gate, up], bits, None, norm, gated=True)
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    return silu_and_mul(_by_library(x, [gate, up], None))


def _by_library(x: Tensor, matrices: Sequence[Matrix], residual: Tensor | None) -> Tensor:
    """For many rows, and for formats that no kernel here reads."""
    weights = [one.weight for one in matrices if isinstance(one, Dense) and one.bias is None]
    if len(weights) < len(matrices) or torch.is_grad_enabled():
        return reference.linear(x, matrices, residual)
    if residual is not None and len(weights) == 1:
        return torch.addmm(residual, x, weights[0].t())
    out = x.new_empty((len(x), sum(len(weight) for weight in weights)))
    for weight, part in zip(weights, out.split([len(w) for w in weights], dim=1), strict=True):
        torch.mm(x, weight.t(), out=part)
    return out if residual is None else out.add_(residual)


def _supported_bits(x: Tensor, matrices: Sequence[Matrix]) -> int:
    """Bits of a weight (16 for all that are not quantized), or 0: not for a kernel here."""
    kinds = {type(matrix) for matrix in matrices}
    biased = {matrix.bias is None for matrix in matrices}
    if len(kinds) > 1 or len(biased) > 1 or not len(x) or x.stride(1) != 1 or x.shape[1] % 16:
        return 0
    read: list[Tensor] = []
    for matrix in matrices:
        if isinstance(matrix, Int4):
            read += (matrix.packed, matrix.scale, matrix.low)
            if matrix.scale.shape[1] * 32 != x.shape[1]:
                return 0
        else:
            read.append(matrix.weight)
    # They are read 16 bytes at a time.
    if not all(one.is_contiguous() and one.data_ptr() % 16 == 0 for one in read):
        return 0
    first = matrices[0]
    return 4 if isinstance(first, Int4) else 8 if isinstance(first, Int8) else 16


def _max_rows(x: Tensor, bits: int) -> int:
    """Up to how many rows the product is computed here. float32 has no fast matrix products."""
    if not bits:
        return 0
    return 1 if bits == 16 and x.element_size() > 2 else tuned_configs.MAX_ROWS[bits]


def _three(tensors: Sequence[Tensor | None], other: Tensor) -> list[Tensor]:
    """Padded to three with any valid address; it is not read."""
    found = [other if tensor is None else tensor for tensor in tensors]
    return found + [found[0]] * (3 - len(found))


def _launch(
    x: Tensor,
    matrices: Sequence[Matrix],
    bits: int,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
) -> Tensor:
    if norm is not None and len(x) > 1:  # every program would norm all rows again
        x, norm = rms_norm(x, norm.weight, norm.eps), None
    weights: Any = [m.packed if isinstance(m, Int4) else m.weight for m in matrices]
    sizes = [len(weight) for weight in weights][: 1 if gated else 3]
    inputs, outputs = x.shape[1], sum(sizes)
    one_row = len(x) == 1
    if bits == 4 or (bits == 8 and one_row):
        weights = [weight.view(torch.int32) for weight in weights]
    scales = _three([getattr(m, "scale", None) for m in matrices], x)
    lows = _three([getattr(m, "low", None) for m in matrices], x)
    biases = _three([m.bias for m in matrices], x)
    pointers = [x, *_three(weights, x)]
    out = x.new_empty((len(x), outputs))
    ends: list[Any] = [x if residual is None else residual, out]
    flags: dict[str, Any] = {
        **dict(zip(("N0", "N1", "N2"), (*sizes, 0, 0), strict=False)), "K": inputs,
        "GATED": gated, "BIAS": matrices[0].bias is not None, "RESIDUAL": residual is not None,
        **options(x.device),
    }  # fmt: skip

    def launch(kernel: Any, config: Any, tiles: int, *arguments: Any, **more: Any) -> Tensor:
        kernel[(tiles,)](
            *pointers, *arguments, BN=config.outputs, num_warps=config.warps, **more, **flags
        )
        return out

    def tiles(config: Any) -> int:
        return sum(triton.cdiv(size, config.outputs) for size in sizes)

    if one_row:
        flags["NORM"] = norm is not None
        weight, eps = (x, 0.0) if norm is None else (norm.weight, norm.eps)
        if bits == 16:
            config = tuned_configs.gemv_config(outputs, inputs, gated)
            arguments = (*biases, weight, *ends, eps)
            return launch(gemv, config, tiles(config), *arguments, BK=config.inputs)
        shared = tuned_configs.int_gemv_config(bits, outputs, inputs, gated)
        programs = min(tiles(shared), shared.programs * num_processors(x.device))
        arguments = (*scales, *lows, *biases, weight, *ends, eps, shared.prefetch)
        return launch(int_gemv, shared, programs, *arguments, BITS=bits, BG=shared.groups)
    rows = tuned_configs.gemm_config(bits, outputs, inputs, gated)
    flags |= {"BM": max(16, power_of_two(len(x))), "STAGES": rows.stages}
    ends += [x.stride(0), len(x)]
    if bits == 4:
        arguments = (*scales, *lows, *biases, *ends)
        return launch(small_gemm_int4, rows, tiles(rows), *arguments, BG=rows.inputs // 32)
    arguments = (*scales, *biases, *ends)
    return launch(small_gemm, rows, tiles(rows), *arguments, BITS=bits, BK=rows.inputs)
