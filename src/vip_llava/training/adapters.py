"""LoRA and QLoRA adapters in training: add, save, load to continue, merge.

The adapters are peft's. The quantized base of QLoRA is built by `models/quantize.py`, so it works
with and without bitsandbytes. A saved folder has peft's layout, which `models/adapters.py` reads:
`adapter_config.json` and `adapter_model.safetensors`, with the projector beside the adapters.
It does not know recipe files or data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.adapters import merge_lora, read_lora
from vip_llava.models.layouts import PROJECTOR, TEXT
from vip_llava.models.quantize import Int4Linear, Int8Linear, Quantization, quantize_model
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.training.json_files import write_json
from vip_llava.training.recipes.recipe import AdapterConfig

__all__ = [
    "ADAPTER",
    "adapter_state",
    "add_adapter",
    "linear_names",
    "load_adapter",
    "merge_adapter",
    "save_adapter",
]

ADAPTER = "default"
"""peft's name of a model's single adapter."""

_PROJECTOR = PROJECTOR.rstrip(".")
_PREFIX = "base_model.model."


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the language model's linear layers, without the head.

    A bare `q_proj` would also match layers of the vision tower.
    """
    linears = (nn.Linear, Int4Linear, Int8Linear)
    body = model.get_submodule(TEXT.rstrip("."))
    return [TEXT + name for name, layer in body.named_modules() if isinstance(layer, linears)]


def add_adapter(
    model: PreTrainedModel,
    config: AdapterConfig,
    *,
    projector: bool = True,
    library: Literal["torch", "bitsandbytes"] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Add a new adapter to the language model, and quantize its base for QLoRA; in place.

    Afterwards only the adapter and, with `projector`, a copy of the projector require gradients.

    Args:
        projector: train the whole projector beside the adapter.
        library: for quantization; by default bitsandbytes if installed and `device` is CUDA.
        device: where quantized layers are moved one by one, so that the full weights need not fit.

    Raises:
        QuantizationError: the base can't be quantized to these bits.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # peft annotates an integer alpha; it only uses alpha / r.
    alpha: Any = config.alpha
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        target_modules=linear_names(model),
        modules_to_save=[_PROJECTOR] if projector else None,
        bias="none",
    )
    model.requires_grad_(False)
    # Not `model.add_adapter`: transformers refuses some releases of peft that work.
    inject_adapter_in_model(lora, model, ADAPTER)
    if config.kind == "qlora":
        # After injection, because peft knows only some quantized classes as base layers.
        quantize_model(model, _quantization(config.bits, library, device), device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or f"modules_to_save.{ADAPTER}." in name)
    return model


def _quantization(
    bits: Literal[4, 8],
    library: Literal["torch", "bitsandbytes"] | None,
    device: torch.device | None,
) -> Quantization:
    from importlib.util import find_spec

    if library is None:
        cuda = device is not None and device.type == "cuda"
        library = "bitsandbytes" if cuda and find_spec("bitsandbytes") else "torch"
    return Quantization(bits, library)


def adapter_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of the adapter and of the projector's copy, under peft's names."""
    from peft import get_peft_model_state_dict

    # With save_embedding_layers="auto" peft asks the hub about the base model.
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, adapter_name=ADAPTER, save_embedding_layers=False
    )
    return state


def save_adapter(
    model: PreTrainedModel,
    folder: Path,
    *,
    base: str | None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Save the adapter and projector of `model` into `folder` as safetensors.

    Args:
        base: the base model's name; error messages mention it when the folder is opened alone.
        state: gathered weights of a sharded model; by default the model's own.

    Raises:
        CheckpointError: the model has no adapter.
    """
    config = getattr(model, "peft_config", {}).get(ADAPTER)
    if config is None:
        raise CheckpointError("the model has no adapter to save: add one with add_adapter")
    folder.mkdir(parents=True, exist_ok=True)
    weights = adapter_state(model) if state is None else state
    named = {f"{_PREFIX}{name}": tensor for name, tensor in weights.items()}
    save_tensors(folder / "adapter_model.safetensors", named)
    settings = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    write_json(folder / "adapter_config.json", settings)
    return folder


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load a saved folder into the adapter that `add_adapter` added, to continue training.

    Raises:
        CheckpointError: different rank, alpha or layers; missing or unexpected weights.
    """
    from peft import set_peft_model_state_dict

    stored = read_lora(folder)
    config = getattr(model, "peft_config", {})[ADAPTER]
    for key, ours in (("r", config.r), ("lora_alpha", config.lora_alpha)):
        theirs = stored.settings.get(key)
        if not isinstance(theirs, int | float) or theirs != ours:
            raise CheckpointError(
                f"the adapter in {folder} has {key} {theirs}, the recipe says {ours:g}: "
                "train.adapter must say the same to continue with it"
            )
    projector = {n: t for n, t in stored.full_weights.items() if n.startswith(PROJECTOR)}
    given = {**stored.weights, **projector}
    expected = {name: tensor.shape for name, tensor in adapter_state(model).items()}
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: missing adapter weights: {sorted(missing)[:4] or 'none'}; unexpected: "
            f"{sorted(unexpected)[:4] or 'none'}"
        )
    wrong = [name for name, shape in expected.items() if given[name].shape != shape]
    if wrong:
        raise CheckpointError(f"{folder}: adapter weights with other shapes: {wrong[:4]}")
    set_peft_model_state_dict(model, given, adapter_name=ADAPTER)
    return model


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Merge the adapter into the language model and put the trained projector in place; in place.

    Raises:
        CheckpointError: a quantized base (merge the saved adapter with `export.merge_folder`), or
            weights that are not finite.
    """
    if any(_is_quantized(model.get_submodule(name)) for name in linear_names(model)):
        raise CheckpointError(
            "an adapter can't be merged into a quantized base without loss; "
            "merge the saved adapter into the full base"
        )
    adapted = [
        name
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer")
    ]
    merge_lora(model, adapted, "the trained adapter")
    projector: Any = model.get_submodule(_PROJECTOR)
    if hasattr(projector, "modules_to_save"):
        model.set_submodule(_PROJECTOR, projector.modules_to_save[ADAPTER])
    return model


def _is_quantized(layer: nn.Module) -> bool:
    """Whether a linear layer is quantized, by this project or by bitsandbytes."""
    weight = getattr(layer, "weight", None)
    stored = isinstance(weight, torch.Tensor) and not weight.dtype.is_floating_point
    return stored or isinstance(layer, Int4Linear | Int8Linear)
