"""The operations as Triton kernels, for CUDA. What each means is said by `plain`.

Nothing here reads from the device, and launches depend on shapes alone, so graphs can hold them.
"""

from __future__ import annotations

from vip_llava.kernels.fused.attention import paged_decode, paged_step
from vip_llava.kernels.fused.elementwise import (
    add_rms_norm,
    rms_norm,
    rotate_and_store,
    silu_and_mul,
)
from vip_llava.kernels.fused.products import (
    gated_rows,
    rows,
)
from vip_llava.kernels.fused.prompts import paged_prompt

__all__ = [
    "CAPTURABLE",
    "add_rms_norm",
    "gated_rows",
    "paged_decode",
    "paged_prompt",
    "paged_step",
    "rms_norm",
    "rotate_and_store",
    "rows",
    "silu_and_mul",
]

CAPTURABLE = True
"""Whether a CUDA graph may be made of these."""
