"""What the device does at best, and how much work a model is: what a speed is a share of.

This module measures the device and counts weights; it runs no model.
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
    "Ceilings",
    "ceilings",
    "finished",
    "first_token_work",
    "forget_peak",
    "held_bytes",
    "peak_bytes",
    "step_bytes",
]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device does at best: bytes read and written by a copy, and a large product."""

    copy_gigabytes: float
    product_teraflops: float


def finished(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the device itself: a copy of 2 GB (16 MB on a CPU), a product of large squares."""
    quick = device.type == "cpu"
    # Larger than any cache by far. Random, since zeros are multiplied with less power.
    source = torch.empty((16 if quick else 2048) * 2**20, dtype=torch.uint8, device=device)
    source.random_(0, 255)
    target = torch.empty_like(source)
    side = 1024 if quick else 8192
    left = torch.randn(side, side, dtype=dtype, device=device)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            finished(device)
            began = time.perf_counter()
            work()
            finished(device)
            times.append(time.perf_counter() - began)
        return min(times)

    copied = best(lambda: target.copy_(source))
    multiplied = best(lambda: left @ left)
    return Ceilings(2 * source.numel() / copied / 1e9, 2 * side**3 / multiplied / 1e12)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows does not tell
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def held_bytes(device: torch.device) -> int:
    """Memory of a GPU that is in use now, after clearing up; 0 for others."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def forget_peak(device: torch.device) -> None:
    """From now on `peak_bytes` of a GPU is about what comes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def step_bytes(model: Any) -> int:
    """Bytes of weights that a new token reads, however few are asked for: all but embeddings."""
    body, head = model.get_decoder(), model.get_output_embeddings()
    table = {tensor.data_ptr() for tensor in model.get_input_embeddings().parameters()}
    read = {t.data_ptr(): t for t in (*body.parameters(), *body.buffers())}
    rest = [tensor for place, tensor in read.items() if place not in table]
    known = sum(t.numel() * t.element_size() for t in (*rest, *head.parameters()))
    # Those hold their weights where torch does not see them.
    halves: list[Any] = [
        one for one in (*body.modules(), *head.modules()) if isinstance(one, Fp16Linear)
    ]
    return int(known + sum(2 * one.in_features * one.out_features for one in halves))


def first_token_work(model: Any, tokens: int, view_tokens: int) -> float:
    """Operations of all products with weights for a prompt of `tokens` with one view."""
    seen = 2.0 * view_tokens * sum(_sizes(model.base_model.vision_tower))
    seen += 2.0 * view_tokens * sum(_sizes(model.base_model.multi_modal_projector))
    read = 2.0 * tokens * sum(_sizes(model.get_decoder()))
    return seen + read + 2.0 * sum(_sizes(model.get_output_embeddings()))


def _sizes(part: nn.Module) -> list[int]:
    """Numbers in the matrices of linear layers, whatever they are stored as."""
    known: list[Any] = [one for one in part.modules() if hasattr(one, "in_features")]
    return [int(one.in_features) * int(one.out_features) for one in known]
