"""LoRA and QLoRA while they train: put on a model, written, read again to go on, merged.

The adapters are peft's; the base of QLoRA has the few bits of `models/quantize.py`, so that it works
with bitsandbytes and without. A written folder is what `models/adapters.py` reads (and peft itself):
`adapter_config.json` and `adapter_model.safetensors` with the projector beside the adapters.
It knows no recipe files and no data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.adapters import fold_adapter, read_adapter
from vip_llava.models.layouts import PROJECTOR, TEXT
from vip_llava.models.quantize import Int4Linear, Int8Linear, Quantization, quantize_model
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.training.recipes.recipe import Adapter

__all__ = [
    "ADAPTER",
    "adapter_state",
    "add_adapter",
    "continue_adapter",
    "linear_names",
    "merge_adapter",
    "write_adapter",
]

ADAPTER = "default"
"""peft's name of the one adapter that a model of ours has."""

_PROJECTOR = PROJECTOR.rstrip(".")
_PREFIX = "base_model.model."


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the language model's linear layers, the output matrix left out.

    Full names, because a bare `q_proj` would also match the image encoder.
    """
    kinds = (nn.Linear, Int4Linear, Int8Linear)
    body = model.get_submodule(TEXT.rstrip("."))
    return [TEXT + name for name, layer in body.named_modules() if isinstance(layer, kinds)]


def add_adapter(
    model: PreTrainedModel,
    settings: Adapter,
    *,
    projector: bool = True,
    library: Literal["torch", "bitsandbytes"] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Put a new adapter on the language model, and its base into few bits for QLoRA; in place.

    Afterwards only the adapter and, with `projector`, a copy of the projector require gradients.

    Args:
        projector: let the projector learn whole, beside the adapter.
        library: of the few bits; bitsandbytes where it is installed and `device` is CUDA.
        device: where the small layers go, one by one, so that the full weights need not fit there.

    Raises:
        QuantizationError: the base can't have so few bits.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # peft's annotation wants a whole alpha; what it computes with is alpha / r.
    alpha: Any = settings.alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=linear_names(model),
        modules_to_save=[_PROJECTOR] if projector else None,
        bias="none",
    )
    model.requires_grad_(False)
    # Through peft, not `model.add_adapter`: transformers refuses releases of peft that work.
    inject_adapter_in_model(config, model, ADAPTER)
    if settings.kind == "qlora":
        # The layers below the adapters are quantized, so any library's layers serve as base.
        quantize_model(model, _quantization(settings.bits, library, device), device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_learns(name))
    return model


def _learns(name: str) -> bool:
    return ".lora_" in name or f"modules_to_save.{ADAPTER}." in name


def _quantization(
    bits: Literal[4, 8],
    library: Literal["torch", "bitsandbytes"] | None,
    device: torch.device | None,
) -> Quantization:
    from importlib.util import find_spec

    if library is None:
        fast = device is not None and device.type == "cuda"
        library = "bitsandbytes" if fast and find_spec("bitsandbytes") else "torch"
    return Quantization(bits, library)


def adapter_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The adapter's weights and the projector's copy, by peft's names without a prefix."""
    from peft import get_peft_model_state_dict

    # Told not to save embeddings, or peft asks a hub whether the base has them.
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, adapter_name=ADAPTER, save_embedding_layers=False
    )
    return state


def write_adapter(
    model: PreTrainedModel,
    folder: Path,
    *,
    base: str | None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the adapter and projector of `model` into `folder` as safetensors.

    Args:
        base: what the adapter belongs to; told to whoever opens the folder without its base.
        state: the weights, where they were gathered from several devices; else the model's own.

    Raises:
        CheckpointError: the model has no adapter.
    """
    config = getattr(model, "peft_config", {}).get(ADAPTER)
    if config is None:
        raise CheckpointError("the model has no adapter to write: add_adapter puts one on")
    folder.mkdir(parents=True, exist_ok=True)
    weights = adapter_state(model) if state is None else state
    named = {f"{_PREFIX}{name}": tensor for name, tensor in weights.items()}
    save_tensors(folder / "adapter_model.safetensors", named)
    settings = config.to_dict()
    settings["base_model_name_or_path"] = base
    settings["inference_mode"] = True
    _write_json(folder / "adapter_config.json", settings)
    return folder


def continue_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Fill the adapter that `add_adapter` put on `model` from a written folder, to train on.

    Raises:
        CheckpointError: another rank or scale, other layers, weights missing or unexpected.
    """
    from peft import set_peft_model_state_dict

    stored = read_adapter(folder)
    config = getattr(model, "peft_config", {})[ADAPTER]
    for key, ours in (("r", config.r), ("lora_alpha", config.lora_alpha)):
        theirs = stored.settings.get(key)
        if not isinstance(theirs, int | float) or theirs != ours:
            raise CheckpointError(
                f"{folder} has an adapter with {key} {theirs}, the recipe says {ours:g}; to go "
                "on with it the recipe must say the same"
            )
    given = {**stored.weights, **_inside(stored.plain)}
    expected = {name: tensor.shape for name, tensor in adapter_state(model).items()}
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: adapter weights missing: {sorted(missing)[:4] or 'none'}; unexpected: "
            f"{sorted(unexpected)[:4] or 'none'}"
        )
    wrong = [name for name, shape in expected.items() if given[name].shape != shape]
    if wrong:
        raise CheckpointError(f"{folder}: adapter weights of another shape: {wrong[:4]}")
    set_peft_model_state_dict(model, given, adapter_name=ADAPTER)
    return model


def _inside(plain: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in plain.items() if name.startswith(PROJECTOR)}


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Fold the adapter into the language model and put the trained projector in place; in place.

    Raises:
        CheckpointError: the base has few bits (merge into the full one: `export.merge_folder`),
            or a weight that is not finite.
    """
    for name in linear_names(model):
        if _few_bits(model.get_submodule(name)):
            raise CheckpointError(
                "an adapter can't be merged into a base of few bits without a loss; "
                "merge the written adapter into the full base"
            )
    adapted = [
        name
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer")
    ]
    fold_adapter(model, adapted, "the trained adapter")
    projector: Any = model.get_submodule(_PROJECTOR)
    if hasattr(projector, "modules_to_save"):
        model.set_submodule(_PROJECTOR, projector.modules_to_save[ADAPTER])
    return model


def _few_bits(layer: nn.Module) -> bool:
    """Whether a linear layer is one of ours with few bits, or one of bitsandbytes."""
    weight = getattr(layer, "weight", None)
    stored = isinstance(weight, torch.Tensor) and not weight.dtype.is_floating_point
    return stored or isinstance(layer, Int4Linear | Int8Linear)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    def plain(value: object) -> object:
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    path.write_text(json.dumps(content, indent=2, default=plain) + "\n", encoding="utf-8")
