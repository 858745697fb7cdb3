"""The compute device: making it current, and sending it small tensors asynchronously."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["current_device", "to_device_async"]


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, so that kernels and graphs are launched on it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`. A plain copy to CUDA would wait for all work queued before."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
