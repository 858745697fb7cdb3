"""Which layout a kernel runs in: small tables, found by measuring on an H200.

`benchmarks/kernel_layouts.py` tries others. What is not in a table runs as its nearest relation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = [
    "MATRIX_ROWS",
    "AttentionSetting",
    "MatrixSetting",
    "VectorSetting",
    "attention_setting",
    "matrix_setting",
    "vector_setting",
]

MATRIX_ROWS = {16: 1, 8: 64, 4: 64}
"""Up to how many rows products with weights of so many bits are made here.

Where weights are not small the library is as fast for several rows.
"""


@dataclass(frozen=True, slots=True)
class VectorSetting:
    """Outputs of a program, inputs read at a time, and warps.

    `ahead`: so many columns of a program's weights are asked for before anything else.
    """

    outputs: int
    inputs: int
    warps: int
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class MatrixSetting:
    """The same for several rows, and steps read ahead."""

    outputs: int
    inputs: int
    warps: int = 4
    stages: int = 4
    ahead: int = 1024


@dataclass(frozen=True, slots=True)
class AttentionSetting:
    """Tokens looked at together, warps, and steps read ahead.

    `parts`: into how many a text is split; by the number of programs if not given.
    """

    tile: int
    warps: int
    stages: int
    parts: int | None = None


_ALL = 1 << 30
# By bits, and whether two matrices are read at once.
_VECTOR = {
    (16, False): VectorSetting(4, 4096, 8),
    (16, True): VectorSetting(2, 4096, 8),
    (8, False): VectorSetting(8, 1024, 4, ahead=_ALL),
    (8, True): VectorSetting(4, 1024, 4, ahead=_ALL),
    (4, False): VectorSetting(8, 2048, 4, ahead=4096),
    (4, True): VectorSetting(4, 2048, 4, ahead=4096),
}


def vector_setting(bits: int, outputs: int, inputs: int, gated: bool) -> VectorSetting:
    """For one row. `outputs` of all matrices together; `gated`: of each of the two."""
    setting = _VECTOR[bits, gated]
    most = 1 << (inputs - 1).bit_length()
    return setting if setting.inputs <= most else replace(setting, inputs=most)


def matrix_setting(bits: int, rows: int, outputs: int, inputs: int, gated: bool) -> MatrixSetting:
    """For several rows."""
    if bits == 4:
        return MatrixSetting(32, 256, stages=2)
    size = max(16, min(128, 1 << (inputs.bit_length() - 1)))
    return MatrixSetting(32 if gated or outputs < 8192 else 64, size, stages=4)


def attention_setting(grouped: bool) -> AttentionSetting:
    """`grouped`: several query heads share a key head."""
    if grouped:
        return AttentionSetting(tile=64, warps=4, stages=2)
    return AttentionSetting(tile=32, warps=4, stages=2)
