"""The layers of a Llama by the fused kernels: five launches a layer for decode, ten for prefill.

Weights are read where the modules hold them, in their own format; nothing is copied. A Llama with
anything but plain or our quantized linear layers in it (separate adapters, layers of other
libraries) is left to `eager_runner`, because what its modules do is not known here.

This module knows transformers' Llama and no requests.
Shape letters: N tokens of the step, R sequences with one token each, C width, Q query heads,
H key/value heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vip_llava.engine.attention import StepPlan, attend
from vip_llava.engine.eager_runner import EagerLlama, has_hooks
from vip_llava.engine.kv_cache import KVCache
from vip_llava.kernels import DecodeBatch, Dense, Kernels, Matrix, Norm, PrefillChunk
from vip_llava.models.quantize import Int4Linear, Int8Linear

__all__ = ["FusedLlama"]

# The frequencies of other types depend on the length of the sequence.
_FIXED_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
_ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Norm
    qkv: tuple[Matrix, Matrix, Matrix]
    out: Matrix
    mlp_norm: Norm
    gate: Matrix
    up: Matrix
    down: Matrix
    scale: float


class FusedLlama:
    """A Llama from embeddings to last hidden states and logits."""

    def __init__(
        self, model: PreTrainedModel, kernels: Kernels, kv_cache: KVCache, max_positions: int
    ) -> None:
        """
        model: a LLaVA that this class `supports`.
        max_positions: no sequence gets longer.
        """
        body, head, embedding = _body_and_ends(model)
        first = body.layers[0].self_attn
        self._kernels, self._kv_cache = kernels, kv_cache
        self._width: int = first.head_dim
        self._heads = first.q_proj.out_features // first.head_dim
        self._kv_heads = first.k_proj.out_features // first.head_dim
        self._layers = [_layer(layer) for layer in body.layers]
        self._norm = _norm(body.norm)
        self._head = _matrix(head)
        self.max_positions = max_positions
        self.vocab_size: int = head.out_features
        self._embedding: Tensor = embedding.weight
        positions = torch.arange(max_positions, device=embedding.weight.device).unsqueeze(0)
        cos, sin = body.rotary_emb(self._embedding[:0], position_ids=positions)
        self._cos, self._sin = cos[0], sin[0]  # [max_positions, D]

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Whether the language model is a Llama of known parts, on one device with one dtype."""
        body, head, embedding = _body_and_ends(model)
        if not EagerLlama.supports(body) or body.rotary_emb.rope_type not in _FIXED_ROPE_TYPES:
            return False
        linears = [
            getattr(one.self_attn, name) for one in body.layers for name in _ATTENTION_LINEARS
        ]
        linears += [getattr(one.mlp, name) for one in body.layers for name in _MLP_LINEARS]
        if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
            return False
        if any(type(linear) not in (nn.Linear, Int8Linear, Int4Linear) for linear in linears):
            return False
        if any(has_hooks(part) for part in (embedding, head, body.rotary_emb, *linears)):
            return False
        parts = (body, head, embedding)
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        # Quantized levels and rotary frequencies have dtypes of their own.
        dtypes = {t.dtype for t in tensors if t.dim() > 1 and t.is_floating_point()}
        devices = {t.device for t in tensors}
        return devices == {model.device} and dtypes == {embedding.weight.dtype}

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [N] to embeddings [N, C]."""
        return nn.functional.embedding(ids, self._embedding)

    @property
    def bytes_per_slot(self) -> int:
        """What the keys and values of a token take in the KV cache."""
        numbers = 2 * len(self._layers) * self._kv_heads * self._width
        return int(numbers * self._embedding.element_size())

    def allocate_kv_cache(self) -> None:
        """Allocate the KV cache of every layer before any is written."""
        like = self._embedding
        for index in range(len(self._layers)):
            self._kv_cache.allocate_layer(
                index, self._kv_heads, self._width, like.dtype, like.device
            )

    def __call__(self, embeds: Tensor, step: StepPlan) -> Tensor:
        """Embeddings [1, N, C] of any step -> hidden states [N, C] after the final norm."""
        self.allocate_kv_cache()
        kernels = self._kernels
        positions = step.positions[0]
        rotary = self._cos[positions], self._sin[positions]
        hidden = embeds[0]
        for index, layer in enumerate(self._layers):
            qkv = self._split(kernels.linear(hidden, layer.qkv, norm=layer.input_norm))
            cache = self._kv_cache.layer(index)
            query = kernels.rope_and_cache(qkv, rotary, cache, step.slot_mapping)
            attended = attend(step, index, query, layer.scale)
            hidden = self._mlp(hidden, attended, layer)
        return kernels.rms_norm(hidden, self._norm.weight, self._norm.eps)

    def decode(self, embeds: Tensor, positions: Tensor, batch: DecodeBatch) -> Tensor:
        """Embeddings [R, C] of one new token a sequence -> logits [R, V]. Does not synchronize."""
        kernels = self._kernels
        rotary = self._rotary(positions)
        hidden = embeds
        for index, layer in enumerate(self._layers):
            qkv = self._split(kernels.linear(hidden, layer.qkv, norm=layer.input_norm))
            cache = self._kv_cache.layer(index)
            attended = kernels.decode_attention(qkv, rotary, cache, batch, layer.scale)
            hidden = self._mlp(hidden, attended, layer)
        return kernels.linear(hidden, [self._head], norm=self._norm)

    def prefill(
        self, embeds: Tensor, positions: Tensor, chunk: PrefillChunk, last: Tensor
    ) -> Tensor:
        """Embeddings [N, C] of new tokens of one sequence -> logits [1, V] after token `last` [1].

        Does not synchronize.
        """
        kernels = self._kernels
        rotary = self._rotary(positions)
        # The sum after each layer and the norm of the next one are one kernel.
        norms = [layer.input_norm for layer in self._layers[1:]] + [self._norm]
        first = self._layers[0].input_norm
        hidden, normed = embeds, kernels.rms_norm(embeds, first.weight, first.eps)
        for index, (layer, next_norm) in enumerate(zip(self._layers, norms, strict=True)):
            qkv = self._split(kernels.linear(normed, layer.qkv))
            cache = self._kv_cache.layer(index)
            query = kernels.rope_and_cache(qkv, rotary, cache, chunk.slot_mapping)
            attended = kernels.prefill_attention(query, cache, chunk, layer.scale)
            out = kernels.linear(attended.flatten(1), [layer.out])
            norm = layer.mlp_norm
            normed, hidden = kernels.add_rms_norm(out, hidden, norm.weight, norm.eps)
            out = kernels.linear(kernels.swiglu(normed, layer.gate, layer.up), [layer.down])
            normed, hidden = kernels.add_rms_norm(out, hidden, next_norm.weight, next_norm.eps)
        return kernels.linear(normed.index_select(0, last), [self._head])

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [N, Q, D], key and value [N, H, D]: views of their common product."""
        heads, kv_heads = self._heads, self._kv_heads
        states = qkv.view(len(qkv), heads + 2 * kv_heads, self._width)
        return states[:, :heads], states[:, heads : heads + kv_heads], states[:, heads + kv_heads :]

    def _mlp(self, hidden: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        """The rest of a layer after its attention, whose result is [N, Q, D]."""
        kernels = self._kernels
        hidden = kernels.linear(attended.flatten(1), [layer.out], residual=hidden)
        gated = kernels.swiglu(hidden, layer.gate, layer.up, norm=layer.mlp_norm)
        return kernels.linear(gated, [layer.down], residual=hidden)


def _body_and_ends(model: Any) -> tuple[Any, Any, Any]:
    """The layers, the output matrix and the embeddings."""
    return model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings()


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=_norm(layer.input_layernorm),
        qkv=(_matrix(attention.q_proj), _matrix(attention.k_proj), _matrix(attention.v_proj)),
        out=_matrix(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate=_matrix(mlp.gate_proj),
        up=_matrix(mlp.up_proj),
        down=_matrix(mlp.down_proj),
        scale=attention.scaling,
    )


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.variance_epsilon)


def _matrix(linear: nn.Linear | Int8Linear | Int4Linear) -> Matrix:
    if isinstance(linear, nn.Linear):
        return Dense(linear.weight, linear.bias)
    return linear.matrix
