"""Image encoders that stop at the deepest layer used, and the two small parts around them.

The published models read the last but one hidden state and earlier ones, so the last encoder layer
need not exist. `stopped` says so in the configuration, and the loader then leaves those weights
out. It also holds the projectors that transformers' classes lack, and the guard that lets image
tokens have an id outside the embedding table.

It knows no files and no language models.
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
from vip_llava.models.spec import Blueprint

__all__ = [
    "StackedProjector",
    "guard_placeholder",
    "keep_only_used_states",
    "needed",
    "stopped",
    "used_states",
]


def used_states(layers: int | tuple[int, ...], encoder_layers: int) -> tuple[int, ...]:
    """The hidden states read, counted from 0 (the input of the first encoder layer).

    Raises:
        CheckpointError: an index that an encoder of `encoder_layers` layers doesn't have.
    """
    states = encoder_layers + 1
    picked = (layers,) if isinstance(layers, int) else layers
    for layer in picked:
        if not -states <= layer < states:
            raise CheckpointError(
                f"hidden state {layer} of an image encoder with {encoder_layers} layers: expected "
                f"{-states} to {states - 1}"
            )
    return tuple(layer % states for layer in picked)


def stopped(blueprint: Blueprint) -> Blueprint:
    """The same model with an encoder that ends at the deepest hidden state used.

    Only CLIP encoders are cut: there a hidden state is the plain output of a layer, while in others
    the last one passes a final norm.
    """
    if not blueprint.clip:
        return blueprint
    states = used_states(blueprint.feature_layers, int(blueprint.vision["num_hidden_layers"]))
    # transformers takes a lone 0 for "no states wanted"; in a list it is a layer.
    single = isinstance(blueprint.feature_layers, int) and states[0] > 0
    layers = states[0] if single else states
    # An encoder without layers returns its input; transformers records states only from a layer.
    vision = {**blueprint.vision, "num_hidden_layers": max(1, *states)}
    return dataclasses.replace(blueprint, vision=vision, feature_layers=layers)


def needed(tensors: Mapping[str, torch.Tensor], encoder_layers: int) -> dict[str, torch.Tensor]:
    """All tensors but those of encoder layers from `encoder_layers` on."""
    prefix = f"{TOWER}encoder.layers."
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(prefix)
        or int(name.removeprefix(prefix).split(".")[0]) < encoder_layers
    }


def keep_only_used_states(model: PreTrainedModel) -> None:
    """Let the encoder hand out only the hidden states that the projector reads.

    From 5.23 on transformers never records the others. Older versions record all of them, which
    would keep the whole encoder's activations alive through the language model's prefill; there a
    hook lets go of them. The encoder must have been `stopped`: indices count from 0.
    """
    config: Any = model.config
    if hasattr(output_capturing, "select_hidden_states"):
        return
    layers = getattr(config, "vision_feature_layer", None)
    layers = config.vision_feature_layers if layers is None else layers
    wanted = {layers} if isinstance(layers, int) else set(layers)
    if min(wanted) < 0 or config.vision_config.model_type != "clip_vision_model":
        return

    def let_go(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if output.hidden_states is not None:
            output.hidden_states = tuple(
                state if index in wanted else None
                for index, state in enumerate(output.hidden_states)
            )

    model.get_submodule("model.vision_tower").register_forward_hook(let_go)


class StackedProjector(nn.Module):
    """Linear layers with GELU between them, optionally after a LayerNorm: [..., in] -> [..., out].

    Stands in where transformers' two-layer projectors don't fit: the original's `linear`
    (one layer) and `mlpNx_gelu` (N layers). Names of weights follow transformers' own.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], eps: float = 1e-5) -> None:
        super().__init__()
        self.projector_layernorm: nn.Module = nn.Identity()
        norm = weights.get("projector_layernorm.weight")
        if norm is not None:
            self.projector_layernorm = nn.LayerNorm(norm.shape[0], eps=eps)
        self.linears = sum(name.endswith(".weight") for name in weights) - (norm is not None)
        for number in range(1, self.linears + 1):
            out, width = weights[f"linear_{number}.weight"].shape
            bias = f"linear_{number}.bias" in weights
            self.add_module(f"linear_{number}", nn.Linear(width, out, bias=bias))
        self.act = nn.GELU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features [..., in] to the language model's width [..., out]."""
        hidden: torch.Tensor = self.projector_layernorm(features)
        for number in range(1, self.linears + 1):
            hidden = self.get_submodule(f"linear_{number}")(
                hidden if number == 1 else self.act(hidden)
            )
        return hidden


@dataclasses.dataclass(frozen=True)
class _HidePlaceholder:
    """Before the embedding: look up token 0 where an image token stands (it is overwritten)."""

    image_token_id: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids = args[0]
        return (torch.where(ids == self.image_token_id, 0, ids), *args[1:])


def guard_placeholder(model: PreTrainedModel, image_token_id: int) -> bool:
    """Let `image_token_id` stand in `input_ids` although the embedding table has no such row.

    The original marks an image by -200 and has no row for it. Taking the first id past the table
    keeps every weight, every logit and the loss exactly as they are. Returns whether a guard was
    needed.
    """
    embedding = model.get_input_embeddings()
    rows = embedding.get_parameter("weight").shape[0]
    if image_token_id < rows:
        return False
    embedding.register_forward_pre_hook(_HidePlaceholder(image_token_id))
    return True
