"""Names of weights in each checkpoint layout, and the one reader of the original's `.bin` files.

Three naming schemes exist. *Canonical* names are those of the parameters of transformers'
`VipLlavaForConditionalGeneration` and `LlavaForConditionalGeneration` in memory; *hub* names are
in published Hugging Face folders; *original* names are in checkpoints of ViP-LLaVA and LLaVA-1.5.
Every layout is read into canonical names and written from them.

This module does not know shapes, configurations or models.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.safetensors_files import require_readable

__all__ = [
    "ProjectorStyle",
    "canonical_from_hub",
    "canonical_from_original",
    "canonical_to_hub",
    "canonical_to_original",
    "format_names",
    "projector_style",
    "read_bin",
    "rename",
]

PROJECTOR = "model.multi_modal_projector."
TOWER = "model.vision_tower."
TEXT = "model.language_model."

# Buffers that old libraries saved and that every library computes on its own.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids|attn\.bias|masked_bias)$")

# Prefixes of training libraries: peft, torch.compile, DDP.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|base_model\.model\.)+")


def read_bin(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a PyTorch `.bin` file with the restricted loader, which runs no code.

    No other function of the package opens such a file; `convert` writes it as safetensors.

    Raises:
        CheckpointError: the file is damaged, or contains anything but tensors by name.
    """
    require_readable(path)
    try:
        # Files since torch 1.6 are zip archives, which can be memory-mapped.
        mapped = zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # many types, all about the file's content
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as a file of weights only ({reason}); expected a PyTorch file "
            "that contains nothing but tensors, or a .safetensors file"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(f"{path} must contain a dictionary from names to tensors")
    return loaded


@dataclass(frozen=True, slots=True)
class ProjectorStyle:
    """The form of a projector: `linear`, or `mlpNx_gelu` with or without a LayerNorm before it."""

    linears: int
    norm: bool
    bare: bool = False
    """Whether the original names its one linear layer `mm_projector.weight`."""

    @property
    def type_name(self) -> str:
        """The value of `mm_projector_type` in the original's configuration."""
        return "linear" if self.bare else f"mlp{self.linears}x_gelu"


def projector_style(canonical: Iterable[str], type_name: str | None = None) -> ProjectorStyle:
    """The projector's form from canonical names of weights.

    Args:
        type_name: the original's `mm_projector_type`; tells `linear` from `mlp1x_gelu`.

    Raises:
        CheckpointError: there is no projector, or its linear layers are not 1, 2, ...
    """
    names = [name.removeprefix(PROJECTOR) for name in canonical if name.startswith(PROJECTOR)]
    linears = {name.split(".")[0] for name in names if name.startswith("linear_")}
    norm = any(name.startswith("projector_layernorm.") for name in names)
    expected = {f"linear_{number}" for number in range(1, len(linears) + 1)}
    if not linears or linears != expected:
        raise CheckpointError(
            f"the projector has the layers {sorted(linears) or 'none'}; expected linear_1, "
            "linear_2, ..."
        )
    bare = len(linears) == 1 and not norm and type_name in (None, "linear")
    return ProjectorStyle(len(linears), norm, bare)


def canonical_from_original(name: str) -> str | None:
    """Canonical name of an original one; None for buffers that are computed.

    The projector of five layers is `clip_layernorm` and `final_linear.{0,2,...}`, that of one
    layer `{0,2,...}` or, for `linear`, the weight itself.

    Raises:
        CheckpointError: no such name exists in the original's layout.
    """
    bare = _WRAPPERS.sub("", name)
    if _COMPUTED.search(bare):
        return None
    if bare.startswith("mm_projector."):
        bare = f"model.{bare}"
    if bare.startswith("model.mm_projector."):
        return PROJECTOR + _projector_part(bare.removeprefix("model.mm_projector."), name)
    if bare.startswith("model.vision_tower.vision_tower."):
        inner = bare.removeprefix("model.vision_tower.vision_tower.")
        return TOWER + inner.removeprefix("vision_model.")
    if bare.startswith("lm_head."):
        return bare
    if bare.startswith("model.") and not bare.startswith("model.vision_tower."):
        return TEXT + bare.removeprefix("model.")
    raise CheckpointError(f"unexpected weight {name!r}: not a name of the original's layout")


def _projector_part(part: str, name: str) -> str:
    if part in ("weight", "bias"):
        return f"linear_1.{part}"
    if part.startswith("clip_layernorm."):
        return part.replace("clip_layernorm", "projector_layernorm", 1)
    index, _, leaf = part.removeprefix("final_linear.").partition(".")
    if index in ("weight", "bias") and not leaf:
        return f"linear_1.{index}"
    if not index.isdigit() or int(index) % 2 or leaf not in ("weight", "bias"):
        raise CheckpointError(
            f"unexpected weight {name!r}: a projector has clip_layernorm and layers 0, 2, 4, ..."
        )
    return f"linear_{int(index) // 2 + 1}.{leaf}"


def canonical_from_hub(name: str) -> str | None:
    """Canonical name of a hub one, as transformers 4 or 5 writes it; None for computed buffers.

    Raises:
        CheckpointError: no such name exists in that layout.
    """
    bare = _WRAPPERS.sub("", name)
    if _COMPUTED.search(bare):
        return None
    if bare.startswith("language_model.lm_head."):
        return bare.removeprefix("language_model.")
    if bare.startswith("language_model.model."):
        return TEXT + bare.removeprefix("language_model.model.")
    if bare.startswith("lm_head."):
        return bare
    if not bare.startswith("model."):
        bare = f"model.{bare}"
    if bare.startswith(TOWER):
        # transformers 5 dropped the level `vision_model.` of CLIP and SigLIP.
        return TOWER + bare.removeprefix(TOWER).removeprefix("vision_model.")
    if bare.startswith((TEXT, PROJECTOR)):
        return bare
    raise CheckpointError(f"unexpected weight {name!r}: not a name of the Hugging Face layout")


def canonical_to_hub(name: str, tower_prefix: str = "vision_model.") -> str:
    """The name in published Hugging Face folders, which every transformers version reads.

    Args:
        tower_prefix: `VisionTower.file_prefix`.
    """
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    if name.startswith(TEXT):
        return "language_model.model." + name.removeprefix(TEXT)
    if name.startswith(TOWER):
        return f"vision_tower.{tower_prefix}{name.removeprefix(TOWER)}"
    return name.removeprefix("model.")


def canonical_to_original(name: str, style: ProjectorStyle) -> str:
    """The original name: the inverse of `canonical_from_original` for a projector of this style."""
    if name.startswith("lm_head."):
        return name
    if name.startswith(TOWER):
        return "model.vision_tower.vision_tower.vision_model." + name.removeprefix(TOWER)
    if name.startswith(PROJECTOR):
        return "model.mm_projector." + _original_part(name.removeprefix(PROJECTOR), style)
    return "model." + name.removeprefix(TEXT)


def _original_part(part: str, style: ProjectorStyle) -> str:
    if part.startswith("projector_layernorm."):
        return part.replace("projector_layernorm", "clip_layernorm", 1)
    layer, _, leaf = part.partition(".")
    if style.bare:
        return leaf
    place = 2 * (int(layer.removeprefix("linear_")) - 1)
    return f"final_linear.{place}.{leaf}" if style.norm else f"{place}.{leaf}"


def rename(
    tensors: Mapping[str, torch.Tensor], to_canonical: Callable[[str], str | None], where: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors under canonical names, and for each canonical name the one in the file.

    Raises:
        CheckpointError: names that the layout does not have (all are listed), or two names for one
            weight.
    """
    renamed: dict[str, torch.Tensor] = {}
    file_names: dict[str, str] = {}
    unexpected: list[str] = []
    for name, tensor in tensors.items():
        try:
            canonical = to_canonical(name)
        except CheckpointError:
            unexpected.append(name)
            continue
        if canonical is None:
            continue
        if canonical in renamed:
            raise CheckpointError(
                f"{where}: {name!r} and {file_names[canonical]!r} are the same weight"
            )
        renamed[canonical] = tensor
        file_names[canonical] = name
    if unexpected:
        raise CheckpointError(f"{where}: unexpected weights {format_names(unexpected)}")
    return renamed, file_names


def format_names(names: Iterable[str], limit: int = 8) -> str:
    """Sorted names for a message: the first `limit`, and how many more; "" for none."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"
