"""Which layout a product runs in: a small table, found by measuring (benchmarks/kernels.py).

Keys are what a product is: bits of a weight, rows, outputs and inputs. What is not in the table
runs as its nearest relation does.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MATRIX_ROWS", "MatrixSetting", "VectorSetting", "matrix_setting", "vector_setting"]

MATRIX_ROWS = {16: 16, 8: 64, 4: 64}
"""Up to how many rows products with weights of so many bits are made here."""


@dataclass(frozen=True, slots=True)
class VectorSetting:
    """Outputs of a program, inputs read at a time, warps, and steps read ahead.

    `ahead`: all weights of a program are asked for before anything else.
    """

    outputs: int
    inputs: int
    warps: int = 4
    stages: int = 1
    ahead: bool = True


@dataclass(frozen=True, slots=True)
class MatrixSetting:
    """The same for several rows."""

    outputs: int
    inputs: int
    warps: int = 4
    stages: int = 4
    ahead: bool = True


def vector_setting(bits: int, outputs: int, inputs: int, gated: bool) -> VectorSetting:
    """For one row. `outputs` of all matrices together; `gated`: of each of the two."""
    if bits == 4:
        return VectorSetting(16 if gated else 32, 256)
    size = 1024 if inputs >= 1024 else 1 << max(4, inputs.bit_length() - 1)
    if bits == 8:
        return VectorSetting(4 if gated else 8, size, stages=3)
    return VectorSetting(4 if gated else 8, size, stages=3)


def matrix_setting(bits: int, rows: int, outputs: int, inputs: int, gated: bool) -> MatrixSetting:
    """For several rows."""
    size = max(16, min(128, 1 << (inputs.bit_length() - 1)))
    if bits == 4:
        return MatrixSetting(32, 256, stages=2)
    return MatrixSetting(32 if gated or outputs < 8192 else 64, size, stages=4)
