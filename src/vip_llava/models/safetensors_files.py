"""Reads and writes one safetensors file, with the permissions and errors of ordinary files.

Every weight file of the package is written here. This module does not know checkpoints: which
files belong together is in `checkpoint_files.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vip_llava.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["load_tensors", "require_readable", "save_tensors"]


def require_readable(path: Path) -> None:
    """Check that this process may read the file `path`.

    The loaders of safetensors and PyTorch report a file without read permission as missing or
    damaged.

    Raises:
        CheckpointError: it may not.
    """
    try:
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: permission denied; this user needs read access to the file"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file by name, memory-mapped on the CPU.

    Raises:
        CheckpointError: the file is missing, not readable, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_readable(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write `tensors` to `path`; views and tensors on other devices are copied first.

    The file gets the mode that the umask gives any new file; safetensors itself would use 0600.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)
    return path
