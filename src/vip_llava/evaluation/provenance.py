"""What a run was made with: hashes of the data and weights, command, versions, hardware.

All values are JSON values. It does not know benchmarks.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava import __version__
from vip_llava.models.default.fetch import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["file_hashes", "run_provenance", "weights_fingerprint"]

_SAMPLED_VALUES = 16
#: Distribution -> the module to look for.
_LIBRARIES = {name: name for name in ("torch", "transformers", "tokenizers", "numpy", "nltk")}
_LIBRARIES["pillow"] = "PIL"


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Last folder and name of each file -> its sha256; where the folder is does not matter."""
    return {f"{path.parent.name}/{path.name}": sha256_of(path) for path in paths}


def weights_fingerprint(model: PreTrainedModel) -> str:
    """A short hash of the names, shapes and first values of all weights.

    Training changes all tensors, so a few values of each distinguish two models, and hashing them
    takes no time for a model of any size.
    """
    import torch

    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()[:_SAMPLED_VALUES].to("cpu", torch.float32)
        state.update(f"{name} {tuple(parameter.shape)}".encode())
        state.update(values.numpy().tobytes())
    return state.hexdigest()[:16]


def run_provenance(command: Sequence[str]) -> dict[str, Any]:
    """Command, start in UTC, versions of the libraries, and the machine."""
    return {
        "command": list(command),
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": _versions(),
        "hardware": _hardware(),
    }


def _versions() -> dict[str, str]:
    installed = {
        name: metadata.version(name) for name, module in _LIBRARIES.items() if find_spec(module)
    }
    return {"vip-llava": __version__, "python": sys.version.split()[0], **installed}


def _hardware() -> dict[str, Any]:
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "system": platform.system(),
        "processor": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count() or 0,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
