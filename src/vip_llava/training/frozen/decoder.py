"""A Llama whose layers don't learn, called with packed rows that something learns from.

`hasten` changes no weight and no module: it puts a way before the model's own that takes calls it
understands, and leaves all others (other layers, adapters, hooks, shards, masks, caches, no
gradient) to transformers.

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
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama import modeling_llama as llama

from vip_llava.training.attention import PACKED_ATTENTION, packed_attention, sequence_borders
from vip_llava.training.frozen.layer import Answered, Asked, Exact, Products
from vip_llava.training.last_layer import READ

__all__ = ["hasten"]

_NORMS = ("input_layernorm", "post_attention_layernorm")
_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_BORDERS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
_KNOWN = {"input_ids", "attention_mask", "past_key_values", "use_cache", "return_dict"}
_TAKEN = _BORDERS | _KNOWN | {"inputs_embeds", "position_ids", READ}


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
    """Whether a call is one of packed rows through layers that don't learn, for a gradient."""
    states = given.get("inputs_embeds")
    return (
        isinstance(states, Tensor)
        and states.shape[0] == 1
        and states.requires_grad
        and torch.is_grad_enabled()
        and isinstance(given.get("position_ids"), Tensor)
        and given.keys() <= _TAKEN
        and not any(given.get(name) for name in ("past_key_values", "use_cache"))
        and given.get("input_ids") is None
        and given.get("attention_mask") is None
        and decoder.config._attn_implementation == PACKED_ATTENTION
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
    position_ids: Tensor,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    places_read: Tensor | None = None,
    **_others: Any,
) -> BaseModelOutputWithPast:
    """As `LlamaModel.forward`."""
    angles = self.rotary_emb(inputs_embeds, position_ids=position_ids)
    cos, sin = (each[0] for each in angles)
    borders = sequence_borders(position_ids) if cu_seq_lens_q is None else cu_seq_lens_q
    longest = int(borders.diff().max()) if max_length_q is None else max_length_q
    layers = list(self.layers[: self.config.num_hidden_layers])
    last = layers.pop() if places_read is not None else None
    x, more = inputs_embeds[0], None
    for layer in layers:
        one = _layer(layer, products, cos, sin, borders, longest)
        if layer.gradient_checkpointing and layer.training:
            x, more = checkpoint(one, x, more, use_reentrant=False)
        else:
            x, more = one(x, more)
    hidden = (x if more is None else x + more).unsqueeze(0)
    if last is not None:
        hidden = last(
            hidden,
            position_ids=position_ids,
            position_embeddings=angles,
            cu_seq_lens_q=borders,
            max_length_q=longest,
            places_read=places_read,
        )
    return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


def _layer(
    layer: Any, products: Products, cos: Tensor, sin: Tensor, borders: Tensor, longest: int
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    attention = layer.self_attn

    def one(x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        ask: Any = Asked.apply
        x, *three = ask(x, more, cos, sin, layer, products)
        q, k, v = (
            each.view(1, len(each), -1, attention.head_dim).transpose(1, 2) for each in three
        )
        found, _ = packed_attention(
            attention, q, k, v, None,
            scaling=attention.scaling, cu_seq_lens_q=borders, max_length_q=longest,
        )  # fmt: skip
        answer: Any = Answered.apply
        made: tuple[Tensor, Tensor] = answer(x, found.reshape(len(x), -1), layer, products)
        return made

    return one
