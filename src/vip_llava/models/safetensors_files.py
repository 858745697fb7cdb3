"""Reading and writing one safetensors file, with the permissions and errors of ordinary files.

It knows nothing about checkpoints: which files belong together is `checkpoint_files.py`.
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
    """Raise CheckpointError unless `path` is a file that this process may read.

    The loaders of safetensors and PyTorch report a file without read permission as missing or
    damaged.
    """
    try:
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: permission denied; this user needs read access to the file"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be opened: {error.strerror}") from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file by name, on the CPU, mapped from disk.

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
    """Write `tensors` to `path`; views and device tensors are copied first.

    The file gets the mode that the umask gives to any new file (safetensors alone uses 0600).
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})
    path.chmod(mode)
    return path
