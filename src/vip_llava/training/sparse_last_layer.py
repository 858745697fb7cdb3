"""The last layer of a Llama, done only for the positions whose result is read.

What a loss reads of the last layer are the positions before a learned token, some fiftieth of all.
The others only give keys and values. So the last layer asks, projects back and goes through its MLP
at those positions alone: the same numbers, one layer of 32 less to a fifth of its work.

It knows transformers' Llama layer. It knows neither labels nor a loss.
"""

from __future__ import annotations

import types
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama

from vip_llava.training.attention import PACKED_ATTENTION

__all__ = ["READ", "ends_early", "read_some"]

READ = "places_read"
"""Under this name the model's call takes the places that are read: int64 [N], of all B x T."""

_ATTENTIONS = (PACKED_ATTENTION, "sdpa", "eager")
"""Those of transformers' interface that make nothing of names they don't know."""


def read_some(model: PreTrainedModel) -> bool:
    """Let the last layer take `places_read` from now on; False where it is no plain Llama layer.

    With them its result is [1, N, C], without them what it was.
    """
    layer = _last(model)
    if layer is None:
        return False
    if "forward" not in vars(layer):
        layer.forward = types.MethodType(_forward, layer)
    return True


def ends_early(model: PreTrainedModel, asked: dict[str, Any]) -> bool:
    """Whether a call with these arguments can be given `places_read`."""
    layer = _last(model)
    own = None if layer is None else vars(layer).get("forward")
    if layer is None or getattr(own, "__func__", None) is not _forward:
        return False
    attention = layer.self_attn
    hooked = attention._forward_hooks or attention._forward_pre_hooks
    more = ("output_hidden_states", "output_attentions", "past_key_values", "cache", "use_cache")
    return (
        not hooked
        and "forward" not in vars(attention)
        and attention.config._attn_implementation in _ATTENTIONS
        and not any(asked.get(name) for name in more)
    )


def _last(model: PreTrainedModel) -> Any:
    """The last decoder layer, if every part of it is what transformers made."""
    owner: Any = model
    decoder = owner.get_decoder()
    if type(decoder) is not llama.LlamaModel:
        return None
    layer = decoder.layers[decoder.config.num_hidden_layers - 1]
    plain = type(layer) is llama.LlamaDecoderLayer and type(layer.self_attn) is llama.LlamaAttention
    return layer if plain else None


def _forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    places_read: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """As `LlamaDecoderLayer.forward`: [B, T, C], or [1, N, C] of the places that are read."""
    if places_read is None:
        whole: Tensor = llama.LlamaDecoderLayer.forward(
            self,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=cast("torch.LongTensor | None", position_ids),
            position_embeddings=position_embeddings,
            **kwargs,
        )
        return whole
    assert position_embeddings is not None
    attention, shape = self.self_attn, hidden_states.shape[:-1]
    normed = self.input_layernorm(hidden_states)
    some = normed.flatten(0, 1).index_select(0, places_read)
    asked = attention.q_proj(some)
    # Nobody reads what the others would ask; asking nothing costs the kernel what asking costs.
    query = asked.new_zeros(shape.numel(), asked.shape[-1]).index_copy(0, places_read, asked)
    heads = [
        each.view(*shape, -1, attention.head_dim).transpose(1, 2)
        for each in (query, attention.k_proj(normed), attention.v_proj(normed))
    ]
    query, key = llama.apply_rotary_pos_emb(heads[0], heads[1], *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, llama.eager_attention_forward
    )
    found, _ = attend(
        attention,
        query,
        key,
        heads[2],
        attention_mask,
        dropout=attention.attention_dropout if self.training else 0.0,
        scaling=attention.scaling,
        position_ids=position_ids,
        **kwargs,
    )
    found = found.reshape(shape.numel(), -1).index_select(0, places_read)
    states = hidden_states.flatten(0, 1).index_select(0, places_read) + attention.o_proj(found)
    states = states + self.mlp(self.post_attention_layernorm(states))
    read: Tensor = states.unsqueeze(0)
    return read
