"""What a run was made with: data by their hash, command, versions, hardware. JSON values only."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava import __version__
from vip_llava.models.default.fetch import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["about_run", "about_sources", "fingerprint"]

_VALUES = 16
_LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "nltk")


def about_sources(paths: Sequence[Path]) -> dict[str, str]:
    """Name -> sha256 of the files that say what is asked; the folder they lie in does not matter."""
    return {f"{path.parent.name}/{path.name}": sha256_of(path) for path in paths}


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of the model's weights: of their names, sizes and the first values of each.

    Another training gives other values everywhere, so a few of each tensor tell models apart at
    once, however large they are.
    """
    import torch

    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()[:_VALUES].to("cpu", torch.float32)
        state.update(f"{name} {tuple(parameter.shape)}".encode())
        state.update(values.numpy().tobytes())
    return state.hexdigest()[:16]


def about_run(command: Sequence[str]) -> dict[str, Any]:
    """Command, start in UTC, versions of the libraries, and the machine."""
    return {
        "command": list(command),
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": _versions(),
        "hardware": _hardware(),
    }


def _versions() -> dict[str, str]:
    found = {"vip-llava": __version__, "python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "devices": devices,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
