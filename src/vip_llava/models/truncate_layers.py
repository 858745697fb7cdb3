"""Truncates a vision tower at the deepest hidden state used.

The published models read the last but one hidden state and earlier ones, so the last encoder layer
is never needed. `truncate_layers` shortens the configuration, and `drop_unused_layers` leaves out
the weights. This module does not know files or language models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from vip_llava.errors import CheckpointError
from vip_llava.models.layouts import TOWER
from vip_llava.models.spec import ModelSpec, layer_setting
from vip_llava.models.vision_towers import get_vision_tower

__all__ = [
    "drop_unused_layers",
    "hidden_state_indices",
    "record_only_used_states",
    "truncate_layers",
    "unused_modules",
]


def hidden_state_indices(layers: int | tuple[int, ...], num_hidden_layers: int) -> tuple[int, ...]:
    """The hidden states read, counted from 0 (the input of the first encoder layer).

    Raises:
        CheckpointError: an index that a tower of `num_hidden_layers` layers does not have.
    """
    states = num_hidden_layers + 1
    picked = (layers,) if isinstance(layers, int) else layers
    for layer in picked:
        if not -states <= layer < states:
            raise CheckpointError(
                f"hidden state {layer} of a vision tower with {num_hidden_layers} layers: "
                f"expected {-states} to {states - 1}"
            )
    return tuple(layer % states for layer in picked)


def truncate_layers(spec: ModelSpec) -> ModelSpec:
    """The same model with a tower that ends at the deepest hidden state used.

    Feature layers count from 0 then. A tower without a list of layers stays whole.

    Raises:
        CheckpointError: a feature layer that the tower does not have.
    """
    depth = spec.tower.num_hidden_layers(spec.vision)
    states = hidden_state_indices(spec.feature_layers, depth)
    if spec.tower.layers is None:
        return spec
    # transformers takes a single 0 for "no hidden states"; in a list it is an index.
    single = isinstance(spec.feature_layers, int) and states[0] > 0
    # A tower without layers returns its input; transformers records states only from a layer.
    vision = {**spec.vision, "num_hidden_layers": max(1, *states)}
    return dataclasses.replace(spec, vision=vision, feature_layers=states[0] if single else states)


def drop_unused_layers(
    tensors: Mapping[str, torch.Tensor], spec: ModelSpec
) -> dict[str, torch.Tensor]:
    """All tensors (canonical names) but those of encoder layers that a truncated spec lacks."""
    if spec.tower.layers is None:
        return dict(tensors)
    prefix = f"{TOWER}{spec.tower.layers}."
    depth = spec.tower.num_hidden_layers(spec.vision)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(prefix) or int(name.removeprefix(prefix).split(".")[0]) < depth
    }


def unused_modules(config: Any) -> tuple[str, ...]:
    """Modules and parameters of the tower that no feature depends on, as "vision_tower.<path>".

    Args:
        config: configuration of a transformers model with `vision_config`.
    """
    vision = config.vision_config
    tower = get_vision_tower(vision.model_type)
    unused = list(tower.unused)
    if tower.layers is not None:
        depth = vision.num_hidden_layers
        deepest = max(hidden_state_indices(layer_setting(config), depth))
        unused += [f"{tower.layers}.{number}" for number in range(deepest, depth)]
    return tuple(f"vision_tower.{path}" for path in unused)


def record_only_used_states(model: PreTrainedModel) -> None:
    """Let the tower return only the hidden states that the projector reads.

    From 5.23 on transformers never records the others. Older versions record all of them, which
    keeps the tower's activations alive through the prefill; a hook drops them there. The tower
    must have been truncated, so that indices count from 0.
    """
    if hasattr(output_capturing, "select_hidden_states"):
        return
    layers = layer_setting(model.config)
    used = {layers} if isinstance(layers, int) else set(layers)
    if min(used) < 0:
        return

    def drop_unused(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if output.hidden_states is not None:
            output.hidden_states = tuple(
                state if index in used else None for index, state in enumerate(output.hidden_states)
            )

    model.get_submodule("model.vision_tower").register_forward_hook(drop_unused)
