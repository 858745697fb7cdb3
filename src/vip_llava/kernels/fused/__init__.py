"""The operations as Triton kernels, for CUDA. `reference` documents what each computes.

Nothing here synchronizes, and launches depend on shapes alone, so graphs can hold them.
"""

from __future__ import annotations

from vip_llava.kernels.fused.elementwise import add_rms_norm, rms_norm, rope_and_cache, silu_and_mul
from vip_llava.kernels.fused.matmul import linear, swiglu
from vip_llava.kernels.fused.paged_decode import decode_attention
from vip_llava.kernels.fused.paged_prefill import prefill_attention

__all__ = [
    "CAPTURABLE",
    "add_rms_norm",
    "decode_attention",
    "linear",
    "prefill_attention",
    "rms_norm",
    "rope_and_cache",
    "silu_and_mul",
    "swiglu",
]

CAPTURABLE = True
"""Whether a CUDA graph may be captured of these."""
