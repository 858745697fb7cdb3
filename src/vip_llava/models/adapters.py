"""LoRA adapters on a multimodal model: read with the names of either layout, merged or kept.

peft does the arithmetic. This module translates names, so that an adapter trained by the original
(on `model.layers...`) changes the language model and never a layer of the vision tower with the
same name. It does not know other files of a checkpoint.
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
from vip_llava.models.layouts import canonical_from_hub, canonical_from_original, format_names

__all__ = ["LoraAdapter", "apply_lora", "merge_lora", "read_lora"]

_PREFIX = "base_model.model."
# Settings that change the arithmetic; the rest of adapter_config.json is about training.
_ARITHMETIC = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "fan_in_fan_out",
    "rank_pattern", "alpha_pattern", "lora_bias",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """LoRA weights with canonical names.

    Args:
        settings: the part of `adapter_config.json` that the arithmetic needs.
        weights: `<canonical module>.lora_A.weight` and so on.
        full_weights: weights that were trained whole beside the adapter, under canonical names.
    """

    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    full_weights: dict[str, torch.Tensor]
    folder: Path

    @property
    def modules(self) -> list[str]:
        """Full names of the layers that the adapter changes."""
        return sorted({name.split(".lora_")[0] for name in self.weights})


def read_lora(folder: Path) -> LoraAdapter:
    """Read a LoRA folder.

    Raises:
        CheckpointError: it is not a LoRA adapter, a file is missing, or a name is unknown.
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
    full_weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, dot, part = name.removeprefix(_PREFIX).partition(".lora_")
        canonical = _canonical(f"{module}.weight" if dot else module, folder)
        if dot:
            weights[canonical.removesuffix(".weight") + dot + part] = tensor
        else:
            full_weights[canonical] = tensor
    if not weights:
        raise CheckpointError(f"{folder}: adapter_model contains no LoRA weights")
    settings = {key: config[key] for key in _ARITHMETIC if config.get(key) is not None}
    return LoraAdapter(settings, weights, full_weights, folder)


def _canonical(name: str, folder: Path) -> str:
    hub = ("model.language_model.", "language_model.", "model.multi_modal_projector.")
    try:
        known = canonical_from_hub(name) if name.startswith(hub) else canonical_from_original(name)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if known is None:
        raise CheckpointError(f"{folder}: unexpected adapter weight {name!r}")
    return known


def apply_lora(model: PreTrainedModel, adapter: LoraAdapter, merge: bool) -> PreTrainedModel:
    """Apply an adapter to `model`, merged into its weights or as peft layers.

    The model is the same object in both cases. The name of an adapter in peft layers is "default".

    Raises:
        CheckpointError: the model lacks a layer, or an adapter weight is missing or has the wrong
            shape.
    """
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from peft import set_peft_model_state_dict as set_weights

    missing = [name for name in adapter.modules if not _has_module(model, name)]
    if missing:
        raise CheckpointError(f"{adapter.folder}: the base has no layers {format_names(missing)}")
    # Full names, because "q_proj" alone would also match the vision tower.
    settings = LoraConfig(target_modules=adapter.modules, inference_mode=True, **adapter.settings)
    inject_adapter_in_model(settings, model)
    # Without the setting peft asks the hub whether the base has its own embeddings.
    expected = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    _check_weights(adapter.folder, {k: v.shape for k, v in expected.items()}, adapter.weights)
    set_weights(model, adapter.weights, adapter_name="default")
    if merge:
        merge_lora(model, adapter.modules, str(adapter.folder))
    return model


def merge_lora(model: PreTrainedModel, names: Iterable[str], source: str) -> None:
    """Merge the LoRA layers `names` into their base layers and restore those, in place.

    Args:
        source: what an error names, such as the adapter's folder.

    Raises:
        CheckpointError: a merged weight is not finite.
    """
    for name in names:
        layer: Any = model.get_submodule(name)
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # a merged weight is not finite
            raise CheckpointError(f"{source}: {name} cannot be merged: {error}") from error
        model.set_submodule(name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _has_module(model: PreTrainedModel, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _check_weights(
    folder: Path, expected: dict[str, torch.Size], given: dict[str, torch.Tensor]
) -> None:
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: adapter weights missing: {format_names(missing) or 'none'}; unexpected: "
            f"{format_names(unexpected) or 'none'}"
        )
    wrong = [name for name, shape in expected.items() if given[name].shape != shape]
    if wrong:
        raise CheckpointError(f"{folder}: adapter weights of another shape: {format_names(wrong)}")
