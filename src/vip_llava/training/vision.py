"""Image inputs of a model in training: frozen towers without a graph, cached features, blank images.

A frozen tower runs without a graph and in evaluation mode. Its outputs may come from a cache
instead of pixels. In a run of several processes a batch without images still sends one blank image
through tower and projector: every rank must run the same modules, or the collectives of sharded
weights and gradients would wait forever.

It knows transformers' LLaVA classes. It does not know where pixels come from or what is trained.
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
from vip_llava.models.spec import layer_setting
from vip_llava.training.param_groups import unwrap

__all__ = ["blank_image", "compile_layers", "patch_image_inputs", "tower_features"]

# Arguments that bring image embeddings by another way.
_OTHER_INPUTS = ("inputs_embeds", "mm_encoder_outputs")

ImageInputs = Mapping[str, Tensor]


def patch_image_inputs(model: nn.Module) -> None:
    """Let `pixel_values` of training calls also be a mapping; in place.

    Its keys: `pixels` [N, 3, S, S]; `features` [M, P, C] from `tower_features`; `cached`, bool
    [N + M], which images are in `features`, if both are given; or only `blank` [1, 3, S, S], an
    image without tokens. A plain tensor works as before.
    """
    owner: Any = unwrap(model).model

    original = type(owner).forward

    @functools.wraps(original)
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | ImageInputs | None = None,
        **kwargs: Any,
    ) -> Any:
        other = any(kwargs.get(name) is not None for name in _OTHER_INPUTS)
        if pixel_values is not None and input_ids is not None and not other:
            kwargs["inputs_embeds"] = _embed(self, input_ids, pixel_values)
            input_ids, pixel_values = None, None
        return original(self, input_ids=input_ids, pixel_values=pixel_values, **kwargs)

    def get_image_features(self: Any, pixel_values: Tensor | ImageInputs, **kwargs: Any) -> Any:
        images = {"pixels": pixel_values} if isinstance(pixel_values, Tensor) else pixel_values
        projected = self.multi_modal_projector(_projector_input(self, images))
        if "blank" in images:
            projected = projected[:0]  # no token is replaced, but the graph includes the projector
        # Llava expects a list of images, VipLlava a tensor.
        output: Any = [projected.flatten(0, 1)] if isinstance(self, LlavaModel) else projected
        return BaseModelOutputWithPooling(pooler_output=output)

    owner.get_image_features = types.MethodType(get_image_features, owner)
    owner.forward = types.MethodType(forward, owner)


def tower_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The projector's input for images [N, 3, S, S]: the selected hidden states [N, P, C].

    It has a graph only if the tower is trainable.
    """
    return _run_tower(unwrap(model).model, pixel_values)


def blank_image(model: nn.Module) -> Tensor:
    """A black image [1, 3, S, S] of the tower's input size."""
    config: Any = unwrap(model).config
    size = config.vision_config.image_size
    return torch.zeros(1, 3, size, size)


def _embed(inner: Any, input_ids: Tensor, pixel_values: Tensor | ImageInputs) -> Tensor:
    """Token embeddings [B, T, C] with the projected images at the image tokens.

    Copies whole rows: the element-wise mask that transformers uses takes ten times as long.
    """
    # nonzero waits for the device, so it comes before the tower is queued.
    positions = (input_ids.flatten() == inner.config.image_token_id).nonzero().flatten()
    embeddings: Tensor = inner.get_input_embeddings()(input_ids)
    features = inner.get_image_features(pixel_values).pooler_output
    if not isinstance(features, Tensor):
        features = torch.cat(list(features))
    features = features.flatten(0, -2).to(embeddings.device, embeddings.dtype)
    if positions.numel() != features.shape[0]:
        raise DataError(
            f"the ids have {positions.numel()} image tokens, but the images give {features.shape[0]}"
        )
    return embeddings.flatten(0, 1).index_copy(0, positions, features).view_as(embeddings)


def _projector_input(inner: Any, images: ImageInputs) -> Tensor:
    """Tower features of all images of a batch, in their order."""
    pixels = images.get("pixels", images.get("blank"))
    features = images.get("features")
    if features is not None:
        features = features.to(next(inner.multi_modal_projector.parameters()).device)
    if pixels is None:
        if features is None:
            raise DataError("pixel_values is a mapping without pixels, features or blank")
        return features
    computed = _run_tower(inner, pixels)
    if features is None:
        return computed
    cached = images["cached"].to(computed.device)
    both = computed.new_empty(len(cached), *computed.shape[1:])
    both[cached] = features.to(computed.dtype)
    both[~cached] = computed
    return both


def _run_tower(inner: Any, pixels: Tensor) -> Tensor:
    tower, config = inner.vision_tower, inner.config
    trainable = any(parameter.requires_grad for parameter in tower.parameters())
    if not trainable and tower.training:
        tower.train(False)
    weight = next(tower.parameters())
    pixels = pixels.to(device=weight.device)
    if not torch.is_autocast_enabled(weight.device.type) and weight.is_floating_point():
        pixels = pixels.to(weight.dtype)
    with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
        states = _hidden_states(tower, pixels)
        layers = layer_setting(config)
        selected = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if getattr(config, "vision_feature_select_strategy", "default") != "full":
            selected = [state[:, 1:] for state in selected]
        return torch.cat(selected, dim=-1)


def _hidden_states(tower: Any, pixels: Tensor) -> Sequence[Tensor]:
    """The hidden states [N, P, C] before the first and behind each layer.

    CLIP layers are called one by one: the hooks with which transformers collects hidden states
    would split each compiled layer.
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
    """Compile the language model's layers, and those of a frozen CLIP tower, with torch.compile.

    Compilation happens at their first call; `dynamic` is the argument of `torch.compile`.
    """
    inner: Any = unwrap(model)
    layers = list(inner.get_decoder().layers)
    tower = inner.model.vision_tower
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        layers += [module for module in tower.modules() if type(module) is CLIPEncoderLayer]
    for layer in layers:
        layer.compile(dynamic=dynamic)
