"""The operations as Triton kernels, for CUDA; those that have none yet are the plain ones."""

from __future__ import annotations

from vip_llava.kernels.plain import (
    CAPTURABLE,
    add_rms_norm,
    gated_rows,
    int4_rows,
    int8_rows,
    linear_rows,
    paged_decode,
    paged_step,
    rms_norm,
    rotate_and_store,
    rows,
    silu_and_mul,
)

__all__ = [
    "CAPTURABLE",
    "add_rms_norm",
    "gated_rows",
    "int4_rows",
    "int8_rows",
    "linear_rows",
    "paged_decode",
    "paged_step",
    "rms_norm",
    "rotate_and_store",
    "rows",
    "silu_and_mul",
]
