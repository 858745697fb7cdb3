"""Tuned launch configurations of the kernels: small tables, measured on an H200.

`benchmarks/kernel_layouts.py` measures others. Shapes that are not in a table use the nearest entry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vip_llava.kernels.fused.launch import power_of_two

__all__ = [
    "MAX_ROWS",
    "AttentionConfig",
    "GemmConfig",
    "GemvConfig",
    "IntGemvConfig",
    "attention_config",
    "gemm_config",
    "gemv_config",
    "int_gemv_config",
]

MAX_ROWS = {16: 64, 8: 64, 4: 64}
"""By bits of a weight: up to how many rows these kernels are faster than the library's products."""


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """Outputs of a program, inputs read at a time, and warps."""

    outputs: int
    inputs: int
    warps: int


@dataclass(frozen=True, slots=True)
class IntGemvConfig:
    """Outputs of a tile (of each of two matrices), groups of a piece, and warps.

    programs: on a multiprocessor at once; they share the tiles of the kernel and leave room for
        some programs of the next one.
    prefetch: weights are prefetched into the L2 cache that many tiles in advance.
    """

    outputs: int
    groups: int
    warps: int
    programs: int
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class GemmConfig:
    """Outputs of a program, inputs read at a time, warps, and pipeline stages."""

    outputs: int
    inputs: int
    warps: int = 4
    stages: int = 4


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Tokens of a tile, warps, pipeline stages, and splits (None: by the number of programs)."""

    tile: int
    warps: int
    stages: int
    splits: int | None = None


# By whether two matrices are read at once.
_GEMV = {False: GemvConfig(4, 4096, 8), True: GemvConfig(2, 4096, 8)}
_MANY = 8192
"""More outputs make enough programs; of more inputs few weights fit into registers."""
# By bits: one matrix with few outputs, one with many, two matrices, many inputs.
_INT_GEMV = {
    (8, "few"): IntGemvConfig(8, 128, 4, 3, prefetch=2),
    (8, "many"): IntGemvConfig(4, 128, 4, 4),
    (8, "two"): IntGemvConfig(2, 128, 4, 4),
    (8, "long"): IntGemvConfig(4, 128, 4, 2),
    (4, "few"): IntGemvConfig(4, 128, 4, 4, prefetch=1),
    (4, "many"): IntGemvConfig(8, 128, 4, 3),
    (4, "two"): IntGemvConfig(4, 128, 4, 4),
    (4, "long"): IntGemvConfig(4, 128, 4, 2),
}


def int_gemv_config(bits: int, outputs: int, inputs: int, gated: bool) -> IntGemvConfig:
    """For one row and quantized weights. `outputs`: of all matrices; if `gated`, of each of two."""
    one = "many" if outputs > _MANY else "few"
    config = _INT_GEMV[bits, "long" if inputs > _MANY else "two" if gated else one]
    if gated and inputs > _MANY:
        config = replace(config, outputs=config.outputs // 2)
    most = power_of_two(inputs * bits // 128)
    return config if config.groups <= most else replace(config, groups=most)


def gemv_config(outputs: int, inputs: int, gated: bool) -> GemvConfig:
    """For one row. `outputs`: of all matrices; if `gated`, of each of two."""
    config = _GEMV[gated]
    most = power_of_two(inputs)
    return config if config.inputs <= most else replace(config, inputs=most)


def gemm_config(bits: int, outputs: int, inputs: int, gated: bool) -> GemmConfig:
    """For several rows. `outputs` as for one row."""
    if bits == 4:
        return GemmConfig(64, 256, stages=2)
    size = max(16, min(128, 1 << (inputs.bit_length() - 1)))
    if bits == 16:
        if not gated and outputs <= _MANY:  # few programs, each with a deep pipeline
            return GemmConfig(64, size, stages=5)
        outputs, stages = (64, 4) if gated else (128, 6)
        return GemmConfig(outputs, min(size, 64), stages=stages)
    return GemmConfig(32 if gated or outputs < _MANY else 64, size, stages=4)


def attention_config(grouped: bool) -> AttentionConfig:
    """For decode attention. `grouped`: several query heads share a key head."""
    if grouped:
        return AttentionConfig(tile=64, warps=4, stages=2)
    return AttentionConfig(tile=32, warps=4, stages=2)
