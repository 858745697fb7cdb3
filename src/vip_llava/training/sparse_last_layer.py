"""The last decoder layer of a Llama, computed only at the positions whose output is read.

A loss reads the last hidden state only at the positions before a supervised token, often a
fiftieth of all. Every other position contributes only its keys and values. So queries, the output
projection and the MLP of the last layer run at the read positions alone; the numbers are the same.

It knows transformers' Llama layer. It does not know labels or losses.
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

__all__ = ["READ_POSITIONS", "can_read_positions", "patch_last_layer"]

READ_POSITIONS = "read_positions"
"""Keyword argument of the model's call: the positions that are read, int64 [N], of all B x T."""

# Attention implementations that ignore keyword arguments they do not know.
_ATTENTIONS = (PACKED_ATTENTION, "sdpa", "eager")
# Arguments of the model's call that need the whole last layer.
_WHOLE_LAYER = (
    "output_hidden_states", "output_attentions", "past_key_values", "cache", "use_cache",
)  # fmt: skip


def patch_last_layer(model: PreTrainedModel) -> bool:
    """Let the last layer accept `read_positions`; False if it is not a plain Llama layer.

    With them the layer returns [1, N, C]; without them its output is unchanged.
    """
    layer = _last_layer(model)
    if layer is None:
        return False
    if "forward" not in vars(layer):
        layer.forward = types.MethodType(_forward, layer)
    return True


def can_read_positions(model: PreTrainedModel, kwargs: dict[str, Any]) -> bool:
    """Whether a call of the model with these keyword arguments may also pass `read_positions`."""
    layer = _last_layer(model)
    own = None if layer is None else vars(layer).get("forward")
    if layer is None or getattr(own, "__func__", None) is not _forward:
        return False
    attention = layer.self_attn
    hooked = attention._forward_hooks or attention._forward_pre_hooks
    return (
        not hooked
        and "forward" not in vars(attention)
        and attention.config._attn_implementation in _ATTENTIONS
        and not any(kwargs.get(name) for name in _WHOLE_LAYER)
    )


def _last_layer(model: PreTrainedModel) -> Any:
    """The last decoder layer, if it and its attention are exactly transformers' Llama classes."""
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
    read_positions: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """`LlamaDecoderLayer.forward`: returns [B, T, C], or [1, N, C] with `read_positions`."""
    if read_positions is None:
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
    some = attention.q_proj(normed.flatten(0, 1).index_select(0, read_positions))
    # Queries of the other positions are zero: the kernel computes them, but they are not read.
    query = some.new_zeros(shape.numel(), some.shape[-1]).index_copy(0, read_positions, some)
    query, key, value = (
        each.view(*shape, -1, attention.head_dim).transpose(1, 2)
        for each in (query, attention.k_proj(normed), attention.v_proj(normed))
    )
    query, key = llama.apply_rotary_pos_emb(query, key, *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, llama.eager_attention_forward
    )
    attended, _ = attend(
        attention,
        query,
        key,
        value,
        attention_mask,
        dropout=attention.attention_dropout if self.training else 0.0,
        scaling=attention.scaling,
        position_ids=position_ids,
        **kwargs,
    )
    attended = attended.reshape(shape.numel(), -1).index_select(0, read_positions)
    residual = hidden_states.flatten(0, 1).index_select(0, read_positions)
    states = residual + attention.o_proj(attended)
    states = states + self.mlp(self.post_attention_layernorm(states))
    read: Tensor = states.unsqueeze(0)
    return read
