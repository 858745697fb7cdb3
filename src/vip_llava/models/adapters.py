"""LoRA adapters on a multimodal model: read with either layout's names, merged or kept.

The arithmetic is peft's; this module brings names in line, so that an adapter trained by the
original (on `model.layers...`) touches the language model and never an image encoder layer of the
same name. It knows no other files of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_json, read_tensors
from vip_llava.models.layouts import canonical_from_hub, canonical_from_original, listed

__all__ = ["Adapter", "apply_adapter", "fold_adapter", "read_adapter"]

_PREFIX = "base_model.model."
# Settings that change the arithmetic; everything else in adapter_config.json is about training.
_KEPT = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "fan_in_fan_out",
    "rank_pattern", "alpha_pattern", "lora_bias",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA weights with canonical names.

    Args:
        settings: the part of `adapter_config.json` that the arithmetic needs.
        weights: `<canonical module>.lora_A.weight` and the like.
        plain: whole weights that were trained beside the adapters, under canonical names.
    """

    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    plain: dict[str, torch.Tensor]
    folder: Path

    @property
    def modules(self) -> list[str]:
        """Full names of the layers that the adapter changes."""
        return sorted({name.split(".lora_")[0] for name in self.weights})


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA folder.

    Raises:
        CheckpointError: no LoRA adapter, missing files or unknown names.
    """
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} has a {config.get('peft_type')!r} adapter; only LORA is supported"
        )
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            tensors = read_tensors([folder / name])
            break
    else:
        raise CheckpointError(f"{folder} lacks adapter_model.safetensors")
    weights: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, dot, part = name.removeprefix(_PREFIX).partition(".lora_")
        canonical = _canonical(f"{module}.weight" if dot else module, folder)
        if dot:
            weights[canonical.removesuffix(".weight") + dot + part] = tensor
        else:
            plain[canonical] = tensor
    if not weights:
        raise CheckpointError(f"{folder}: adapter_model holds no LoRA weights")
    settings = {key: config[key] for key in _KEPT if config.get(key) is not None}
    return Adapter(settings, weights, plain, folder)


def _canonical(name: str, folder: Path) -> str:
    ours = ("model.language_model.", "language_model.", "model.multi_modal_projector.")
    try:
        known = canonical_from_hub(name) if name.startswith(ours) else canonical_from_original(name)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if known is None:
        raise CheckpointError(f"{folder}: unexpected adapter weight {name!r}")
    return known


def apply_adapter(model: PreTrainedModel, adapter: Adapter, merge: bool) -> PreTrainedModel:
    """Put the adapter on `model`, merged into its weights or kept as a peft adapter.

    Kept, the model is the same object with peft's layers inside (adapter name "default").

    Raises:
        CheckpointError: layers that the model lacks, or adapter weights missing or of wrong shape.
    """
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from peft import set_peft_model_state_dict as set_weights

    lacking = [name for name in adapter.modules if not _has(model, name)]
    if lacking:
        raise CheckpointError(f"{adapter.folder}: the base has no layers {listed(lacking)}")
    # Full names, because a bare "q_proj" would also match the image encoder.
    settings = LoraConfig(target_modules=adapter.modules, inference_mode=True, **adapter.settings)
    inject_adapter_in_model(settings, model)
    # Told not to save embeddings, or peft asks a hub whether the base has them.
    expected = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    _compare(adapter.folder, {k: v.shape for k, v in expected.items()}, adapter.weights)
    set_weights(model, adapter.weights, adapter_name="default")
    if merge:
        fold_adapter(model, adapter.modules, str(adapter.folder))
    return model


def fold_adapter(model: PreTrainedModel, names: Iterable[str], source: str) -> None:
    """Merge the LoRA layers called `names` into their base layers and put those back; in place.

    Args:
        source: what the error names, the adapter's folder.

    Raises:
        CheckpointError: a merged weight is not finite.
    """
    for name in names:
        layer: Any = model.get_submodule(name)
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # peft's check for weights that are not finite
            raise CheckpointError(f"{source}: {name} can't be merged: {error}") from error
        model.set_submodule(name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _has(model: PreTrainedModel, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _compare(folder: Path, expected: dict[str, torch.Size], given: dict[str, torch.Tensor]) -> None:
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: adapter weights missing: {listed(missing) or 'none'}; unexpected: "
            f"{listed(unexpected) or 'none'}"
        )
    wrong = [name for name, shape in expected.items() if given[name].shape != shape]
    if wrong:
        raise CheckpointError(f"{folder}: adapter weights of another shape: {listed(wrong)}")
