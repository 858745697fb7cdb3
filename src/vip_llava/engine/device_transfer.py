"""The device that computes: being on it, and sending it small tensors without waiting for it.

This module knows devices and nothing of what the tensors mean.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["on", "sent"]


def on(device: torch.device) -> AbstractContextManager[object]:
    """Within, kernels and graphs are started on `device`, also if another GPU is the usual one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. A plain copy to CUDA would wait for all work before it."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
