"""Llama's layers called directly: the arithmetic of transformers' without what surrounds it.

Of a decoded token of a small model on a CPU about a tenth goes into masks that nobody needs, caches
and wrappers around every layer; the rest is reading weights. Here a step is a loop over the layers
that calls their own modules (so LoRA, quantized and other linear layers work as they are) and the
same paged attention. Everything that is not exactly transformers' Llama goes the ordinary way.

This module knows transformers' Llama and no requests.
Shape letters: N tokens of the step, C width, Q query heads, H key/value heads, D width of a head.
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

__all__ = ["LeanLlama", "hooked"]


class LeanLlama:
    """The layers of a Llama, with its final norm."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        """`decoder`: one that `fits`."""
        self._decoder: Any = decoder

    @staticmethod
    def fits(decoder: PreTrainedModel) -> bool:
        """Whether this is a Llama, part for part, that nobody hooked into."""
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
        return all(type(part) is kind and not hooked(part) for part, kind in parts)

    def __call__(self, embeds: Tensor, step: StepPlan) -> Tensor:
        """Embeddings [1, N, C] of a step's tokens -> hidden states [N, C] after the last norm."""
        decoder, memory = self._decoder, step.memory
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
            memory.write(index, step.places, key, value)
            found = attend(step, index, query, attention.scaling)
            hidden = hidden + attention.o_proj(found.flatten(1))
            normed = _norm(layer.post_attention_layernorm, hidden)
            gate, up = apply_linears((mlp.gate_proj, mlp.up_proj), normed)
            hidden = hidden + mlp.down_proj(F.silu(gate) * up)
        return _norm(decoder.norm, hidden)


def hooked(part: Any) -> bool:
    """Whether calling this module does more than its own arithmetic."""
    if hasattr(part, "_hf_hook") or "forward" in vars(part):
        return True
    hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    # Those that transformers leaves behind once it was asked for hidden states only look on.
    return any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    if len(hidden) > 1 or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    # torch makes its norm of a dozen small operations on a CPU; of one token four are enough.
    share = 1 / hidden.shape[1]
    root = torch.addmm(_number(norm.variance_epsilon), hidden, hidden.t(), alpha=share).rsqrt_()
    found: Tensor = hidden * norm.weight
    return found.mul_(root)


@functools.cache
def _number(value: float) -> Tensor:
    return torch.tensor([[value]])


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """States [N, heads, D] turned by their positions; `sin` has the signs in it."""
    half = states.shape[-1] // 2
    return states * cos + states.roll(half, dims=-1) * sin
