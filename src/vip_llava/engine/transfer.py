"""Small tensors on their way to the device, without waiting for what the device still has to do.

This module knows devices and nothing of what the tensors mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sent"]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. A plain copy to CUDA would wait for all work before it."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
