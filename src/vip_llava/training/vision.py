"""Images on their way into a model that learns.

A frozen tower runs without a graph and in evaluation mode. Its outputs may come from a cache
instead of pixels. A batch without images still passes one blank image through tower and
projector when several processes train together: each of them has to make the same calls, or those
that share gradients or weights would wait for each other for ever.

It knows transformers' LLaVA classes, but neither where pixels come from nor what is learned.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from vip_llava.errors import DataError
from vip_llava.training.param_groups import bare, feature_layers

__all__ = ["blank_view", "compile_layers", "read_views", "tower_features"]

_OTHER_IMAGES = ("inputs_embeds", "mm_encoder_outputs")

Views = Mapping[str, Tensor]


def read_views(model: nn.Module) -> None:
    """From now on `pixel_values` may also be a mapping, in calls of `model` for training.

    Its keys: `pixels` [N, 3, S, S]; `features` [M, P, C] from `tower_features`; `cached`, bool
    [N + M], which views come from `features`, where both are given; or `blank` [1, 3, S, S] alone,
    an image that no token stands for. A plain tensor is as before.
    """
    owner: Any = bare(model).model

    usual = type(owner).forward

    @functools.wraps(usual)
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Views | None = None,
        **kwargs: Any,
    ) -> Any:
        given = any(kwargs.get(name) is not None for name in _OTHER_IMAGES)
        if pixel_values is not None and input_ids is not None and not given:
            kwargs["inputs_embeds"] = _with_images(self, input_ids, pixel_values)
            input_ids, pixel_values = None, None
        return usual(self, input_ids=input_ids, pixel_values=pixel_values, **kwargs)

    def get_image_features(self: Any, pixel_values: Tensor | Views, **kwargs: Any) -> Any:
        views = {"pixels": pixel_values} if isinstance(pixel_values, Tensor) else pixel_values
        features = _selected(self, views)
        projected = self.multi_modal_projector(features)
        if "blank" in views:
            projected = projected[:0]  # nothing is written, but the graph runs through it
        # Llava wants the images one by one.
        many: Any = [projected.flatten(0, 1)] if isinstance(self, LlavaModel) else projected
        return BaseModelOutputWithPooling(pooler_output=many)

    owner.get_image_features = types.MethodType(get_image_features, owner)
    owner.forward = types.MethodType(forward, owner)


def tower_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """What the projector reads: views [N, 3, S, S] -> the chosen hidden states [N, P, C].

    With a graph only where the tower learns.
    """
    return _tower(bare(model).model, pixel_values)


def blank_view(model: nn.Module) -> Tensor:
    """A black image [1, 3, S, S] of the size that the model's tower reads."""
    config: Any = bare(model).config
    size = config.vision_config.image_size
    return torch.zeros(1, 3, size, size)


def _with_images(inner: Any, input_ids: Tensor, pixel_values: Tensor | Views) -> Tensor:
    """Embeddings [B, T, C] of the ids with the projected images at their places.

    Whole rows are written; a mask over every number, as transformers has it, costs ten times that.
    """
    # First, because it waits for the device: everything behind it is handed over without a stop.
    places = (input_ids.flatten() == inner.config.image_token_id).nonzero().flatten()
    words: Tensor = inner.get_input_embeddings()(input_ids)
    features = inner.get_image_features(pixel_values).pooler_output
    if not isinstance(features, Tensor):
        features = torch.cat(list(features))
    features = features.flatten(0, -2).to(words.device, words.dtype)
    if places.numel() != features.shape[0]:
        raise DataError(
            f"the ids have {places.numel()} places of images, the images fill {features.shape[0]}"
        )
    return words.flatten(0, 1).index_copy(0, places, features).view_as(words)


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
        states = _states(tower, pixels)
        layers = feature_layers(config)
        picked = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if getattr(config, "vision_feature_select_strategy", "default") != "full":
            picked = [state[:, 1:] for state in picked]
        return torch.cat(picked, dim=-1)


def _states(tower: Any, pixels: Tensor) -> Sequence[Tensor]:
    """The hidden states [N, P, C] before and behind each layer.

    A CLIP's layers are called one by one: the hooks by which transformers collects states would cut
    each compiled layer in pieces.
    """
    body = getattr(tower, "vision_model", tower)
    layers = getattr(getattr(body, "encoder", None), "layers", None)
    if layers is None or any(type(layer) is not CLIPEncoderLayer for layer in layers):
        states: Sequence[Tensor]
        states = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        return states
    found = [body.pre_layrnorm(body.embeddings(pixels))]
    for layer in layers:
        found.append(layer(found[-1], None))
    return found


def compile_layers(model: nn.Module, dynamic: bool | None = None) -> None:
    """Let torch compile the language model's layers, and those of a frozen CLIP tower.

    They are compiled when they are first called; `dynamic` is that of `torch.compile`.
    """
    inner: Any = bare(model)
    layers = list(inner.get_decoder().layers)
    tower = inner.model.vision_tower
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        layers += [part for part in tower.modules() if type(part) is CLIPEncoderLayer]
    for layer in layers:
        layer.compile(dynamic=dynamic)
