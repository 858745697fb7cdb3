"""Pictures on their way into a model that learns.

A frozen tower runs without a graph and in evaluation mode. Its outputs may come from a cache
instead of pixels. A batch without pictures still passes one blank picture through tower and
projector when several processes train together: each of them has to make the same calls, or those
that share gradients or weights would wait for each other for ever.

It knows transformers' LLaVA classes, but neither where pixels come from nor what is learned.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vip_llava.errors import DataError
from vip_llava.training.parts import bare, feature_layers

__all__ = ["blank_view", "read_views", "tower_features"]

Views = Mapping[str, Tensor]


def read_views(model: nn.Module) -> None:
    """From now on `pixel_values` may also be a mapping, in calls of `model` for training.

    Its keys: `pixels` [N, 3, S, S]; `features` [M, P, C] from `tower_features`; `cached`, bool
    [N + M], which views come from `features`, where both are given; or `blank` [1, 3, S, S] alone,
    a picture that no token stands for. A plain tensor is as before.
    """
    owner: Any = bare(model).model

    def get_image_features(self: Any, pixel_values: Tensor | Views, **kwargs: Any) -> Any:
        views = {"pixels": pixel_values} if isinstance(pixel_values, Tensor) else pixel_values
        features = _selected(self, views)
        projected = self.multi_modal_projector(features)
        if "blank" in views:
            projected = projected[:0]  # nothing is written, but the graph runs through it
        # Llava wants the pictures one by one.
        many: Any = [projected.flatten(0, 1)] if isinstance(self, LlavaModel) else projected
        return BaseModelOutputWithPooling(pooler_output=many)

    owner.get_image_features = types.MethodType(get_image_features, owner)


def tower_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """What the projector reads: views [N, 3, S, S] -> the chosen hidden states [N, P, C].

    With a graph only where the tower learns.
    """
    return _tower(bare(model).model, pixel_values)


def blank_view(model: nn.Module) -> Tensor:
    """A black picture [1, 3, S, S] of the size that the model's tower reads."""
    config: Any = bare(model).config
    size = config.vision_config.image_size
    return torch.zeros(1, 3, size, size)


def _selected(inner: Any, views: Views) -> Tensor:
    """The projector's input for all views of a batch, in their order."""
    pixels = views.get("pixels", views.get("blank"))
    features = views.get("features")
    if features is not None:
        projector = next(inner.multi_modal_projector.parameters())
        features = features.to(projector.device)
    if pixels is None or features is None:
        found = features if pixels is None else _tower(inner, pixels)
        if found is None:
            raise DataError("pixel_values is a mapping with neither pixels, features nor blank")
        return found
    made = _tower(inner, pixels)
    cached = views["cached"].to(made.device)
    both = made.new_empty(len(cached), *made.shape[1:])
    both[cached] = features.to(made.dtype)
    both[~cached] = made
    return both


def _tower(inner: Any, pixels: Tensor) -> Tensor:
    tower, config = inner.vision_tower, inner.config
    learns = any(parameter.requires_grad for parameter in tower.parameters())
    if not learns and tower.training:
        tower.train(False)
    weight = next(tower.parameters())
    pixels = pixels.to(device=weight.device)
    if not torch.is_autocast_enabled(weight.device.type) and weight.is_floating_point():
        pixels = pixels.to(weight.dtype)
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        states = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        layers = feature_layers(config)
        picked = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if getattr(config, "vision_feature_select_strategy", "default") != "full":
            picked = [state[:, 1:] for state in picked]
        return torch.cat(picked, dim=-1)
