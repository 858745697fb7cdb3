"""Which layout a kernel runs in: small tables, found by measuring on an H200.

`benchmarks/kernel_layouts.py` tries others. What is not in a table runs as its nearest relation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vip_llava.kernels.fused.context import power_of_two

__all__ = [
    "MATRIX_ROWS",
    "AttentionSetting",
    "MatrixSetting",
    "VectorSetting",
    "WordsSetting",
    "attention_setting",
    "matrix_setting",
    "vector_setting",
    "words_setting",
]

MATRIX_ROWS = {16: 64, 8: 64, 4: 64}
"""Up to how many rows products with weights of so many bits are made here."""


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
class WordsSetting:
    """For small weights: outputs of a tile (of each of two matrices), groups in a piece, warps.

    `programs`: so many on a multiprocessor at once share the tiles: all of the kernel, and leave
    room for some of the next. `ahead`: so many tiles before their turn, weights are brought near.
    """

    outputs: int
    groups: int
    warps: int
    programs: int
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


# By whether two matrices are read at once.
_VECTOR = {False: VectorSetting(4, 4096, 8), True: VectorSetting(2, 4096, 8)}
_MANY = 8192
"""Of more outputs there are enough for more programs; of more inputs few weights fit registers."""
# Small weights, by bits: of one matrix with few outputs, of one with many, of two, of many inputs.
_WORDS = {
    (8, "few"): WordsSetting(8, 128, 4, 3, ahead=2),
    (8, "many"): WordsSetting(4, 128, 4, 4),
    (8, "two"): WordsSetting(2, 128, 4, 4),
    (8, "long"): WordsSetting(4, 128, 4, 2),
    (4, "few"): WordsSetting(4, 128, 4, 4, ahead=1),
    (4, "many"): WordsSetting(8, 128, 4, 3),
    (4, "two"): WordsSetting(4, 128, 4, 4),
    (4, "long"): WordsSetting(4, 128, 4, 2),
}


def words_setting(bits: int, outputs: int, inputs: int, gated: bool) -> WordsSetting:
    """For one row and small weights. `outputs` of all matrices together; `gated`: of each of two."""
    one = "many" if outputs > _MANY else "few"
    setting = _WORDS[bits, "long" if inputs > _MANY else "two" if gated else one]
    if gated and inputs > _MANY:
        setting = replace(setting, outputs=setting.outputs // 2)
    most = power_of_two(inputs * bits // 128)
    return setting if setting.groups <= most else replace(setting, groups=most)


def vector_setting(outputs: int, inputs: int, gated: bool) -> VectorSetting:
    """For one row. `outputs` of all matrices together; `gated`: of each of two."""
    setting = _VECTOR[gated]
    most = power_of_two(inputs)
    return setting if setting.inputs <= most else replace(setting, inputs=most)


def matrix_setting(bits: int, rows: int, outputs: int, inputs: int, gated: bool) -> MatrixSetting:
    """For several rows."""
    if bits == 4:
        return MatrixSetting(32, 256, stages=2)
    size = max(16, min(128, 1 << (inputs.bit_length() - 1)))
    if bits == 16:
        if not gated and outputs <= _MANY:  # few programs, each of which has to read far ahead
            return MatrixSetting(64, size, stages=5, ahead=0)
        outputs, stages = (64, 4) if gated else (128, 6)
        return MatrixSetting(outputs, min(size, 64), stages=stages, ahead=0)
    return MatrixSetting(32 if gated or outputs < 8192 else 64, size, stages=4)


def attention_setting(grouped: bool) -> AttentionSetting:
    """`grouped`: several query heads share a key head."""
    if grouped:
        return AttentionSetting(tile=64, warps=4, stages=2)
    return AttentionSetting(tile=32, warps=4, stages=2)
