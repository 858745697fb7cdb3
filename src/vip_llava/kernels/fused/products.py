"""Products of few rows with weights in their own format; more rows go to the library's products.

This is the host's side: what is launched, and how. The kernels are in `vector`, `words` and `matrix`.
Shape letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from vip_llava.kernels import reference as plain
from vip_llava.kernels.fused import tuned_configs as choices
from vip_llava.kernels.fused.context import options, overlapping, power_of_two, processors
from vip_llava.kernels.fused.elementwise import rms_norm, silu_and_mul
from vip_llava.kernels.fused.int4_gemv import vector_words
from vip_llava.kernels.fused.matrix import matrix, matrix_int4
from vip_llava.kernels.fused.tuned_configs import MatrixSetting, VectorSetting, WordsSetting
from vip_llava.kernels.fused.vector import vector
from vip_llava.kernels.values import Dense, Int4, Int8, Matrix, Norm

__all__ = ["gated_rows", "rows"]


def rows(
    x: Tensor,
    matrices: Sequence[Matrix],
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """x [M, K], normed if asked, times each matrix, side by side, plus residual: [M, all N]."""
    bits = _bits(x, matrices)
    fits = len(matrices) <= 3 and (residual is None or residual.is_contiguous())
    if fits and len(x) <= _most_rows(x, bits):
        return _launch(x, matrices, bits, residual, norm, gated=False)
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    return _by_library(x, matrices, residual)


def gated_rows(x: Tensor, gate: Matrix, up: Matrix, norm: Norm | None = None) -> Tensor:
    """silu(x gate) * (x up): [M, K] -> [M, N]."""
    bits = _bits(x, [gate, up])
    if len(x) <= _most_rows(x, bits):
        return _launch(x, [gate, up], bits, None, norm, gated=True)
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    return silu_and_mul(_by_library(x, [gate, up], None))


def _by_library(x: Tensor, matrices: Sequence[Matrix], residual: Tensor | None) -> Tensor:
    """For many rows, and for formats that no kernel here reads."""
    plainly = [one.weight for one in matrices if isinstance(one, Dense) and one.bias is None]
    if len(plainly) < len(matrices) or torch.is_grad_enabled():
        return plain.rows(x, matrices, residual)
    if residual is not None and len(plainly) == 1:
        return torch.addmm(residual, x, plainly[0].t())
    out = x.new_empty((len(x), sum(len(weight) for weight in plainly)))
    for weight, part in zip(plainly, out.split([len(w) for w in plainly], dim=1), strict=True):
        torch.mm(x, weight.t(), out=part)
    return out if residual is None else out.add_(residual)


def _bits(x: Tensor, matrices: Sequence[Matrix]) -> int:
    """Bits of a weight (16 for all that are not quantized), or 0: not for a kernel here."""
    kinds = {type(matrix) for matrix in matrices}
    biased = {matrix.bias is None for matrix in matrices}
    if len(kinds) > 1 or len(biased) > 1 or not len(x) or x.stride(1) != 1:
        return 0
    stored = [matrix.packed if isinstance(matrix, Int4) else matrix.weight for matrix in matrices]
    if x.shape[1] % 16 or not all(_whole(one) for one in stored):
        return 0
    first = matrices[0]
    if isinstance(first, Int4):
        fours = [matrix for matrix in matrices if isinstance(matrix, Int4)]
        if not all(_whole(one) for matrix in fours for one in (matrix.scale, matrix.low)):
            return 0
        sizes = {matrix.scale.shape[1] * 32 for matrix in fours}
        return 4 if sizes == {x.shape[1]} else 0
    return 8 if isinstance(first, Int8) else 16


def _most_rows(x: Tensor, bits: int) -> int:
    """Up to how many rows the product is made here. Numbers of 32 bits have no fast products."""
    if not bits:
        return 0
    return 1 if bits == 16 and x.element_size() > 2 else choices.MATRIX_ROWS[bits]


def _whole(stored: Tensor) -> bool:
    """Whether it can be read 16 bytes at a time from beginning to end."""
    return stored.is_contiguous() and stored.data_ptr() % 16 == 0


def _three(tensors: Sequence[Tensor | None], other: Tensor) -> list[Tensor]:
    """Filled up to three with something that has an address; it is not read."""
    found = [other if tensor is None else tensor for tensor in tensors]
    return found + [found[0]] * (3 - len(found))


def _ahead(setting: VectorSetting | MatrixSetting, bits: int, x: Tensor) -> dict[str, int]:
    """How much of a program's weights is asked for ahead: nothing, or the first columns of each."""
    pieces, columns = 32 * setting.warps, min(setting.ahead, x.shape[1])
    size = columns * setting.outputs * (8 * x.element_size() if bits == 16 else bits) // 8
    fits = pieces % setting.outputs == 0 and size > 0 and size % (16 * pieces) == 0
    if not fits or not overlapping(x.device):
        return {"PIECES": 0, "COLUMNS": 0}
    return {"PIECES": pieces, "COLUMNS": columns}


def _launch(
    x: Tensor,
    matrices: Sequence[Matrix],
    bits: int,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
) -> Tensor:
    if norm is not None and len(x) > 1:  # many rows would be normed anew by every program
        x, norm = rms_norm(x, norm.weight, norm.eps), None
    anything: Any = matrices
    sizes = [len(one.scale if bits == 4 else one.weight) for one in anything]
    sizes = sizes[:1] if gated else sizes
    inputs, outputs = x.shape[1], sum(sizes)
    out = x.new_empty((len(x), outputs))
    n0, n1, n2 = (*sizes, 0, 0)[:3]
    one = len(x) == 1
    small = one and bits < 16
    weights = [m.packed if bits == 4 else m.weight for m in anything]
    weights = [w.view(torch.int32) if small or bits == 4 else w for w in weights]
    pointers = [
        x,
        *_three(weights, x),
        *([] if bits == 16 and one else _three([getattr(m, "scale", x) for m in anything], x)),
        *(_three([getattr(m, "low", x) for m in anything], x) if bits == 4 or small else []),
        *_three([m.bias for m in anything], x),
    ]
    more = x if residual is None else residual
    flags: dict[str, Any] = {
        "N0": n0, "N1": n1, "N2": n2, "K": inputs, "GATED": gated,
        "BIAS": matrices[0].bias is not None, "RESIDUAL": residual is not None,
        **options(x.device),
    }  # fmt: skip
    setting: VectorSetting | WordsSetting | MatrixSetting
    if one:
        kernel = vector_words if small else vector
        choice = partial(choices.words_setting, bits) if small else choices.vector_setting
        setting = choice(outputs, inputs, gated)
        flags |= {"NORM": norm is not None}
        weight, eps = (x, 0.0) if norm is None else (norm.weight, norm.eps)
        rest: tuple[Any, ...] = (weight, more, out, eps)
    else:
        setting = choices.matrix_setting(bits, len(x), outputs, inputs, gated)
        kernel = matrix_int4 if bits == 4 else matrix
        flags["BM"] = max(16, power_of_two(len(x)))
        rest = (more, out, x.stride(0), len(x))
        flags |= {"STAGES": setting.stages} | ({} if bits == 4 else {"BITS": bits})
    tiles = sum(triton.cdiv(size, setting.outputs) for size in sizes)
    if isinstance(setting, WordsSetting):
        tiles = min(tiles, setting.programs * processors(x.device))
        rest += (setting.ahead,)
        flags |= {"BITS": bits, "BG": setting.groups}
    else:
        flags |= {"BG": setting.inputs // 32} if bits == 4 else {"BK": setting.inputs}
        flags |= _ahead(setting, bits, x)
    kernel[(tiles,)](
        *pointers,
        *rest,
        BN=setting.outputs,
        num_warps=setting.warps,
        **flags,
    )
    return out
