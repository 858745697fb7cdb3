"""Resolves dtype, device, device map and quantization of a model.

It fills in what a caller leaves open, and rejects what is impossible. It does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.quantize import Quantization, parse_quantization

__all__ = ["Placement", "best_device", "resolve_dtype"]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and types of a model's weights."""

    dtype: torch.dtype
    device: torch.device
    device_map: str | dict[str, Any] | None = None
    quantization: Quantization | None = None

    @staticmethod
    def resolve(
        dtype: str | torch.dtype,
        device: str | torch.device | None,
        device_map: str | dict[str, Any] | None,
        quantization: str | int | None,
    ) -> Placement:
        """Fill in what the caller left open.

        Raises:
            CheckpointError: an unknown dtype or device, or both device and device_map.
            QuantizationError: an unknown quantization.
        """
        if device is not None and device_map is not None:
            raise CheckpointError(
                "give device= or device_map=, not both (command line: --device, --device-map)"
            )
        try:
            resolved = torch.device(device) if device is not None else best_device()
        except RuntimeError:
            raise CheckpointError(f"unknown device {device!r}; expected cpu, cuda or mps") from None
        if resolved.type == "cuda" and not torch.cuda.is_available():
            raise CheckpointError(f"device {device!r}: no CUDA device is available here")
        return Placement(
            resolve_dtype(dtype, resolved),
            resolved,
            device_map,
            parse_quantization(quantization, resolved),
        )


def best_device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name or dtype; "auto" is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        CheckpointError: not a floating-point type that models run in.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in _DTYPES.values():
        raise CheckpointError(f"unknown dtype {dtype!r}; expected auto, float32, float16, bfloat16")
    assert isinstance(found, torch.dtype)
    return found
