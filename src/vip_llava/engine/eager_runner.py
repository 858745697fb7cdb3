"""The layers of a Llama called directly: the arithmetic of transformers without what surrounds it.

Of the time of a decoded token of a small model on a CPU about a tenth goes into unneeded masks,
caches and wrappers around every layer. Here a step is a loop over the layers that calls their own
modules (so LoRA, quantized and other linear layers work) and the same paged attention. A model that
is not exactly transformers' Llama is called through its own forward method instead.

This module knows transformers' Llama and no requests.
Shape letters: N tokens of the step, C width, H heads, D width of a head.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from vip_llava.engine.attention import StepPlan, attend
from vip_llava.models.fp16_linear import apply_linears

__all__ = ["EagerLlama", "has_hooks"]


class EagerLlama:
    """The layers of a Llama, with its final norm."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        """`decoder`: a model that this class `supports`."""
        self._decoder: Any = decoder

    @staticmethod
    def supports(decoder: PreTrainedModel) -> bool:
        """Whether every part is transformers' own Llama module, without hooks."""
        body: Any = decoder
        if type(body) is not LlamaModel or body.config.hidden_act != "silu":
            return False
        parts: list[tuple[Any, type]] = [(body, LlamaModel), (body.norm, LlamaRMSNorm)]
        layer: Any
        for layer in body.layers:
            parts += [(layer, LlamaDecoderLayer), (layer.self_attn, LlamaAttention)]
            parts += [(layer.mlp, LlamaMLP), (layer.mlp.act_fn, SiLUActivation)]
            parts += [(layer.input_layernorm, LlamaRMSNorm)]
            parts += [(layer.post_attention_layernorm, LlamaRMSNorm)]
        # Hooks (accelerate's, for models over several devices) run where a module is called.
        return all(type(part) is kind and not has_hooks(part) for part, kind in parts)

    def __call__(self, embeds: Tensor, step: StepPlan) -> Tensor:
        """Embeddings [1, N, C] of a step's tokens -> hidden states [N, C] after the final norm."""
        decoder, kv_cache = self._decoder, step.kv_cache
        cos, sin = decoder.rotary_emb(embeds, position_ids=step.positions)
        cos, sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)  # [N, 1, D]
        # The first half of the rotated pair has the opposite sign.
        sin = torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), dim=-1)
        hidden = embeds[0]
        for index, layer in enumerate(decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            normed = _norm(layer.input_layernorm, hidden)
            shape = (len(hidden), -1, attention.head_dim)
            layers = (attention.q_proj, attention.k_proj, attention.v_proj)
            query, key, value = (made.view(shape) for made in apply_linears(layers, normed))
            both = _rotated(torch.cat((query, key), dim=1), cos, sin)
            query, key = both[:, : query.shape[1]], both[:, query.shape[1] :]
            kv_cache.write(index, step.slot_mapping, key, value)
            found = attend(step, index, query, attention.scaling)
            hidden = hidden + attention.o_proj(found.flatten(1))
            normed = _norm(layer.post_attention_layernorm, hidden)
            gate, up = apply_linears((mlp.gate_proj, mlp.up_proj), normed)
            hidden = hidden + mlp.down_proj(F.silu(gate) * up)
        return _norm(decoder.norm, hidden)


def has_hooks(module: Any) -> bool:
    """Whether calling a module does more than its own arithmetic."""
    if hasattr(module, "_hf_hook") or "forward" in vars(module):
        return True
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    # transformers leaves these behind after a call with `output_hidden_states`; they change nothing.
    return any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    if len(hidden) > 1 or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    # On a CPU torch computes its norm by a dozen small operations; for one token four are enough.
    share = 1 / hidden.shape[1]
    root = torch.addmm(_number(norm.variance_epsilon), hidden, hidden.t(), alpha=share).rsqrt_()
    found: Tensor = hidden * norm.weight
    return found.mul_(root)


@functools.cache
def _number(value: float) -> Tensor:
    return torch.tensor([[value]])


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """States [N, H, D] rotated by their positions; `sin` includes the signs."""
    half = states.shape[-1] // 2
    return states * cos + states.roll(half, dims=-1) * sin
