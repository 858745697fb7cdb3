"""The roofline: the peak rates of a device, and how much work a model's steps are.

This module measures the device and counts weights. It runs no model.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vip_llava.models.fp16_linear import Fp16Linear

__all__ = [
    "Roofline",
    "allocated_bytes",
    "decode_bytes",
    "measure_roofline",
    "peak_bytes",
    "prefill_flops",
    "reset_peak",
    "synchronize",
]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peak rates of a device: bytes read and written by a copy, and a large matrix product."""

    copy_gigabytes: float
    matmul_teraflops: float


def synchronize(device: torch.device) -> None:
    """Wait for all work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_roofline(device: torch.device, dtype: torch.dtype) -> Roofline:
    """Time a copy of 2 GB (16 MB on a CPU) and a product of large square matrices."""
    small = device.type == "cpu"
    # Much larger than any cache. Random, since products of zeros take less power.
    source = torch.empty((16 if small else 2048) * 2**20, dtype=torch.uint8, device=device)
    source.random_(0, 255)
    target = torch.empty_like(source)
    side = 1024 if small else 8192
    left = torch.randn(side, side, dtype=dtype, device=device)

    def shortest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            synchronize(device)
            began = time.perf_counter()
            work()
            synchronize(device)
            times.append(time.perf_counter() - began)
        return min(times)

    copy = shortest(lambda: target.copy_(source))
    product = shortest(lambda: left @ left)
    return Roofline(2 * source.numel() / copy / 1e9, 2 * side**3 / product / 1e12)


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def allocated_bytes(device: torch.device) -> int:
    """GPU memory allocated now, after garbage collection; 0 for other devices."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` of a GPU count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def decode_bytes(model: Any) -> int:
    """Bytes of weights that a decode step reads: all but the embeddings."""
    body, head = model.get_decoder(), model.get_output_embeddings()
    embeddings = {tensor.data_ptr() for tensor in model.get_input_embeddings().parameters()}
    tensors = {t.data_ptr(): t for t in (*body.parameters(), *body.buffers())}
    read = [tensor for address, tensor in tensors.items() if address not in embeddings]
    total = sum(t.numel() * t.element_size() for t in (*read, *head.parameters()))
    # These hold their weights where torch does not see them.
    halves = [one for one in (*body.modules(), *head.modules()) if isinstance(one, Fp16Linear)]
    return int(total + 2 * sum(_linear_sizes(nn.ModuleList(halves))))


def prefill_flops(model: Any, tokens: int, view_tokens: int) -> float:
    """Operations of all products with weights for a prompt of `tokens` with one view."""
    vision = sum(_linear_sizes(model.base_model.vision_tower))
    vision += sum(_linear_sizes(model.base_model.multi_modal_projector))
    text = tokens * sum(_linear_sizes(model.get_decoder()))
    return 2.0 * (view_tokens * vision + text + sum(_linear_sizes(model.get_output_embeddings())))


def _linear_sizes(part: nn.Module) -> list[int]:
    """Numbers in the matrices of linear layers, in any format."""
    linears: list[Any] = [one for one in part.modules() if hasattr(one, "in_features")]
    return [int(one.in_features) * int(one.out_features) for one in linears]
