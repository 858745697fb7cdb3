"""Which weights learn, and how fast: projector, language model, vision tower, and adapters.

The parts are found by the names that transformers gives them, with or without peft around the
model. What is not chosen gets no gradient; layers of the tower that nothing reads never learn.

This module builds parameter groups but no optimizer, and knows no data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from vip_llava.errors import RequestError
from vip_llava.models.truncate_layers import used_states

__all__ = ["PARTS", "bare", "choose_trainable", "optimizer_groups", "part_of"]

PARTS = ("projector", "language", "tower")
"""What can be chosen; adapters of peft, where the model has some, learn in any case."""

_MARKS = {"multi_modal_projector": "projector", "vision_tower": "tower"}
# How peft's methods call their weights: LoRA and its kin.
_ADAPTERS = ("lora_", "modules_to_save", "trainable_tokens_")


def bare(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside wrappers: DDP, torch.compile, peft."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "module"):
            inner = inner.module
        else:
            raise RequestError(f"{type(inner).__name__} holds no transformers model")
    return inner


def part_of(name: str) -> str:
    """The part that a parameter's or module's name belongs to: one of `PARTS`."""
    return next((part for mark, part in _MARKS.items() if f".{mark}." in f".{name}."), "language")


def choose_trainable(model: nn.Module, parts: Collection[str]) -> dict[str, int]:
    """Let these parts learn, and the adapters if there are any; everything else is frozen.

    Returns:
        How many numbers learn in each part and in "adapters"; parts without any are left out.

    Raises:
        RequestError: an unknown part, nothing that learns, or weights that can't (quantized).
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise RequestError(f"no part is called {unknown[0]!r}: expected some of {list(PARTS)}")
    adapted = {name for name, _ in model.named_parameters() if _is_adapter(name)}
    if adapted and "language" in parts:
        raise RequestError("the language model has adapters: train them or all of it, not both")
    unread = _unread_layers(bare(model))
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = "adapters" if name in adapted else part_of(name)
        learns = (name in adapted or part in parts) and ".original_module." not in name
        learns = learns and not any(f".{mark}." in f".{name}" for mark in unread)
        if learns and not parameter.is_floating_point():
            raise RequestError(f"{name} is quantized ({parameter.dtype}) and can't learn: use LoRA")
        parameter.requires_grad_(learns)
        if learns:
            size = getattr(parameter, "ds_numel", parameter.numel())
            counts[part] = counts.get(part, 0) + size
    if not counts:
        raise RequestError(f"nothing would learn: choose some of {list(PARTS)}, or add adapters")
    return counts


def _is_adapter(name: str) -> bool:
    return any(f".{mark}" in f".{name}" for mark in _ADAPTERS)


def _unread_layers(model: PreTrainedModel) -> list[str]:
    """Names of the parts of a CLIP tower behind the deepest hidden state that is read."""
    config: Any = model.config
    if config.vision_config.model_type != "clip_vision_model":
        return []
    count = config.vision_config.num_hidden_layers
    deepest = max(used_states(feature_layers(config), count))
    return ["post_layernorm", *(f"encoder.layers.{n}" for n in range(deepest, count))]


def feature_layers(config: Any) -> int | tuple[int, ...]:
    """The hidden states of the tower that the projector reads, in either spelling of the setting."""
    layers = getattr(config, "vision_feature_layer", None)
    layers = config.vision_feature_layers if layers is None else layers
    return layers if isinstance(layers, int) else tuple(layers)


def learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that learn, in the order of the model."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def optimizer_groups(
    model: nn.Module,
    *,
    lr: float,
    projector_lr: float | None = None,
    tower_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: one for each rate, with and without weight decay.

    Matrices decay; biases, norms and other vectors don't. A part without a rate of its own has
    `lr`. Adapters inside the projector (`modules_to_save`) count as projector.
    """
    rates = {"language": lr, "projector": projector_lr or lr, "tower": tower_lr or lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in learning(model):
        # ZeRO-3 leaves an empty stand-in and says the shape beside it.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        groups.setdefault((part_of(name), len(shape) > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decays else 0.0,
            "part": part,
        }
        for (part, decays), parameters in groups.items()
    ]


def learned_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Stored buffers that change with learning: statistics beside a parameter that learns."""
    for prefix, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                    yield name, buffer
