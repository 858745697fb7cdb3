"""A Llama whose layers don't learn, called for a gradient: packed rows, or padded ones.

`hasten` changes no weight and no module: it puts a way before the model's own that takes calls it
understands, and leaves all others (other layers, adapters, hooks, shards, caches, no gradient) to
transformers.

It knows transformers' Llama. It knows neither pictures nor a loss.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama

from vip_llava.training.attention import sequence_borders
from vip_llava.training.frozen.layer import Answered, Asked, Exact, Products
from vip_llava.training.last_layer import ATTENTIONS, READ

__all__ = ["hasten"]

_NORMS = ("input_layernorm", "post_attention_layernorm")
_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_BORDERS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
_KNOWN = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", READ}
_TAKEN = _BORDERS | _KNOWN | {"past_key_values", "use_cache", "return_dict"}


def hasten(model: PreTrainedModel, products: Products | None = None) -> bool:
    """Let frozen layers go the short way from now on; False for a language model that is no Llama.

    `products`: how their products are made; as the weights are without it. What is frozen is seen
    at each call.
    """
    owner: Any = model
    decoder = owner.get_decoder()
    if type(decoder) is not llama.LlamaModel:
        return False
    usual = type(decoder).forward
    made = products or Exact()

    @functools.wraps(usual)
    def forward(self: Any, *args: Any, **given: Any) -> Any:
        if args or not _fits(self, given):
            return usual(self, *args, **given)
        return _called(self, made, **given)

    decoder.forward = types.MethodType(forward, decoder)
    return True


def _fits(decoder: Any, given: dict[str, Any]) -> bool:
    """Whether a call goes through layers that don't learn, for a gradient, and asks for no more."""
    states = given.get("inputs_embeds")
    return (
        isinstance(states, Tensor)
        and states.requires_grad
        and torch.is_grad_enabled()
        and given.keys() <= _TAKEN
        and not any(given.get(name) for name in ("past_key_values", "use_cache"))
        and given.get("input_ids") is None
        and decoder.config._attn_implementation in ATTENTIONS
        and all(_plain(layer, states) for layer in decoder.layers)
    )


def _plain(layer: Any, states: Tensor) -> bool:
    """Whether a layer is transformers' own, all of it frozen, of one type, and not watched."""
    if type(layer) is not llama.LlamaDecoderLayer or type(layer.self_attn) is not (
        llama.LlamaAttention
    ):
        return False
    parts = [getattr(layer, name) for name in _NORMS]
    linears = [getattr(getattr(layer, part), name) for part in _LINEARS for name in _LINEARS[part]]
    watched = [*parts, *linears, layer.self_attn, layer.mlp, layer]
    kind = states.dtype
    if torch.is_autocast_enabled(states.device.type):
        kind = torch.get_autocast_dtype(states.device.type)
    return (
        type(layer.mlp) is llama.LlamaMLP
        and layer.mlp.config.hidden_act in ("silu", "swish")
        and all(type(linear) is nn.Linear and linear.bias is None for linear in linears)
        and all(type(part) is llama.LlamaRMSNorm for part in parts)
        and all(_own(part.weight, states, kind) for part in (*parts, *linears))
        and not any(part._forward_hooks or part._forward_pre_hooks for part in watched)
        and not any("forward" in vars(part) for part in watched[:-1])
        and (layer.self_attn.attention_dropout == 0 or not layer.training)
    )


def _own(weight: Any, states: Tensor, kind: torch.dtype) -> bool:
    return (
        type(weight) is nn.Parameter
        and not weight.requires_grad
        and weight.device == states.device
        and weight.dtype == states.dtype == kind
    )


def _called(
    self: Any,
    products: Products,
    *,
    inputs_embeds: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    places_read: Tensor | None = None,
    **given: Any,
) -> BaseModelOutputWithPast:
    """As `LlamaModel.forward`."""
    rows, length, width = inputs_embeds.shape
    if position_ids is None:
        position_ids = torch.arange(length, device=inputs_embeds.device).unsqueeze(0)
    asked = {name: given[name] for name in _BORDERS if given.get(name) is not None}
    asked |= {
        "position_ids": position_ids,
        "attention_mask": create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        ),
    }
    if asked["attention_mask"] is None and rows == 1 and "cu_seq_lens_q" not in asked:
        # Once, and not in each layer.
        asked["cu_seq_lens_q"] = borders = sequence_borders(position_ids)
        asked["max_length_q"] = int(borders.diff().max())
    angles = self.rotary_emb(inputs_embeds, position_ids=position_ids)
    cos, sin = (each.expand(rows, -1, -1).reshape(rows * length, -1) for each in angles)
    layers = list(self.layers[: self.config.num_hidden_layers])
    last = layers.pop() if places_read is not None else None
    x, more = inputs_embeds.reshape(-1, width), None
    for layer in layers:
        one = _layer(layer, products, cos, sin, rows, asked)
        if layer.gradient_checkpointing and layer.training:
            x, more = checkpoint(one, x, more, use_reentrant=False)
        else:
            x, more = one(x, more)
    hidden = (x if more is None else x + more).view(rows, length, width)
    if last is not None:
        hidden = last(hidden, position_embeddings=angles, places_read=places_read, **asked)
    return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


def _layer(
    layer: Any, products: Products, cos: Tensor, sin: Tensor, rows: int, asked: dict[str, Any]
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    attention = layer.self_attn
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, llama.eager_attention_forward
    )

    def one(x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        ask: Any = Asked.apply
        x, *three = ask(x, more, cos, sin, layer, products)
        q, k, v = (
            each.view(rows, len(each) // rows, -1, attention.head_dim).transpose(1, 2)
            for each in three
        )
        found, _ = attend(attention, q, k, v, dropout=0.0, scaling=attention.scaling, **asked)
        answer: Any = Answered.apply
        made: tuple[Tensor, Tensor] = answer(x, found.reshape(len(x), -1), layer, products)
        return made

    return one
