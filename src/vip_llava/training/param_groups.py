"""Freezing and parameter groups: which of projector, language model and tower are trained, and how.

A parameter's part follows from the name that transformers gives it, with or without peft around the
model. Frozen parameters get no gradient; tower layers behind the last hidden state that is read are
always frozen.

This module builds parameter groups but no optimizer. It does not know data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from vip_llava.errors import RequestError
from vip_llava.models.truncate_layers import unused_modules

__all__ = ["PARTS", "param_groups", "part_of", "set_trainable", "trainable_parameters", "unwrap"]

PARTS = ("projector", "language", "tower")
"""The parts that can be trained. Adapters of peft, where the model has any, are always trained."""

_PREFIXES = {"multi_modal_projector": "projector", "vision_tower": "tower"}
# How peft names its own parameters.
_ADAPTER_NAMES = ("lora_", "modules_to_save", "trainable_tokens_")


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, torch.compile and peft wrappers."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "module"):
            inner = inner.module
        else:
            raise RequestError(f"{type(inner).__name__} does not wrap a transformers model")
    return inner


def part_of(name: str) -> str:
    """The part, one of `PARTS`, that a parameter's or module's name belongs to."""
    return next((part for key, part in _PREFIXES.items() if f".{key}." in f".{name}."), "language")


def set_trainable(model: nn.Module, parts: Collection[str]) -> dict[str, int]:
    """Train these parts, and the adapters if the model has any; freeze everything else.

    Returns:
        The number of trainable parameters of each part and of "adapters", where it is not zero.

    Raises:
        RequestError: an unknown part, no trainable parameter, or a quantized one.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise RequestError(f"unknown part {unknown[0]!r}: expected some of {list(PARTS)}")
    adapters = {name for name, _ in model.named_parameters() if _is_adapter(name)}
    if adapters and "language" in parts:
        raise RequestError(
            "the language model has adapters: train either the adapters or the language model, "
            "not both"
        )
    unread = unused_modules(unwrap(model).config)
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = "adapters" if name in adapters else part_of(name)
        trainable = (name in adapters or part in parts) and ".original_module." not in name
        trainable = trainable and not any(f".{unused}." in f".{name}." for unused in unread)
        if trainable and not parameter.is_floating_point():
            raise RequestError(
                f"{name} is quantized ({parameter.dtype}) and can't be trained: use LoRA"
            )
        parameter.requires_grad_(trainable)
        if trainable:
            size = getattr(parameter, "ds_numel", parameter.numel())
            counts[part] = counts.get(part, 0) + size
    if not counts:
        raise RequestError(f"no trainable parameters: choose some of {list(PARTS)} or add adapters")
    return counts


def _is_adapter(name: str) -> bool:
    return any(f".{start}" in f".{name}" for start in _ADAPTER_NAMES)


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that require gradients, in the order of the model."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def trainable_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Persistent buffers of modules with trainable parameters, such as running statistics."""
    for prefix, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                    yield name, buffer


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    projector_lr: float | None = None,
    tower_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: one for each part, with and without weight decay.

    Matrices decay; biases, norms and other vectors do not. A part without a learning rate of its
    own uses `lr`. A projector that peft trains (`modules_to_save`) counts as projector.
    """
    rates = {"language": lr, "projector": projector_lr or lr, "tower": tower_lr or lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable_parameters(model):
        # Under ZeRO-3 the parameter itself is an empty placeholder.
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
