"""What launches of the Triton kernels have in common: sizes, the device, and the interpreter."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

__all__ = ["INTERPRETED", "num_processors", "options", "power_of_two", "supports_overlap"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run on the CPU, element by element, for tests."""

OVERLAP = True
"""Whether kernels overlap where the device supports it; a switch for measuring."""


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


@functools.cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of a device; few for the interpreter, so that tests split work too."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def supports_overlap(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it ends: from Hopper (9.0) on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(device: torch.device) -> dict[str, Any]:
    """Launch options of every kernel."""
    overlap = OVERLAP and supports_overlap(device)
    return {"OVERLAP": overlap, "launch_pdl": True} if overlap else {"OVERLAP": False}


def _patch_interpreter() -> None:
    """Let loops over loaded bounds run: the interpreter of Triton 3.6 makes an `int` of an array
    with one element, which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    module: Any = interpreter
    before = module._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    module._patch_lang_tensor = patched


if INTERPRETED:
    _patch_interpreter()
