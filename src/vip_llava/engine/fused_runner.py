"""Llama's layers by the fused kernels: five launches a layer for answers, ten for prompts.

The weights are read where the modules hold them, in their own format, and nothing is copied.
A Llama with anything else in it than plain or our small linear layers (adapters kept apart, layers
of other libraries) is left to `lean`, because what its modules do may change without notice.

This module knows transformers' Llama and no requests.
Shape letters: N tokens of the step, R requests with one token each, C width, Q query heads,
H key/value heads, D width of a head, W blocks of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vip_llava.engine.attention import StepPlan, attend
from vip_llava.engine.block_manager import KVMemory
from vip_llava.engine.eager_runner import LeanLlama, hooked
from vip_llava.kernels import Dense, Kernels, Matrix, Norm
from vip_llava.models.quantize import Int4Linear, Int8Linear

__all__ = ["Answers", "FusedLlama", "Prompt"]

# Of the others the frequencies depend on how long the text is by now.
_STEADY_ROPES = {"default", "linear", "llama3", "yarn"}
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Answers:
    """One new token of each of R requests; all on the device, as `Kernels.paged_step` wants them."""

    positions: Tensor
    places: Tensor
    table: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Prompt:
    """New tokens of one request; all on the device, as `Kernels.paged_prompt` wants them."""

    positions: Tensor
    places: Tensor
    """[N]; negative for tokens that only fill up."""
    table: Tensor
    span: Tensor
    last: Tensor
    """[1]: which of the new tokens the next one is chosen after."""


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Norm
    qkv: tuple[Matrix, Matrix, Matrix]
    out: Matrix
    after: Norm
    gate: Matrix
    up: Matrix
    down: Matrix
    scaling: float


class FusedLlama:
    """A Llama from the embeddings to its last hidden states, and its logits."""

    def __init__(
        self, model: PreTrainedModel, kernels: Kernels, memory: KVMemory, positions: int
    ) -> None:
        """`model`: a LLaVA that `fits`. `positions`: no text gets longer."""
        body, head, table = _body_and_ends(model)
        first = body.layers[0].self_attn
        self._kernels, self._memory = kernels, memory
        self._width: int = first.head_dim
        self._heads = first.q_proj.out_features // first.head_dim
        self._held = first.k_proj.out_features // first.head_dim
        self._layers = [_layer(layer) for layer in body.layers]
        self._norm = _norm(body.norm)
        self._head = _matrix(head)
        self.vocabulary: int = head.out_features
        self._embedding: Tensor = table.weight
        some = torch.empty(0, dtype=table.weight.dtype, device=table.weight.device)
        where = torch.arange(positions, device=some.device).unsqueeze(0)
        cos, sin = body.rotary_emb(some, position_ids=where)
        self._cos, self._sin = cos[0], sin[0]  # [positions, D]

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether the language model is a Llama of known parts, on one device with one type."""
        body, head, table = _body_and_ends(model)
        if not LeanLlama.fits(body) or body.rotary_emb.rope_type not in _STEADY_ROPES:
            return False
        attentions, mlps = _LINEARS
        linears = [getattr(layer.self_attn, name) for layer in body.layers for name in attentions]
        linears += [getattr(layer.mlp, name) for layer in body.layers for name in mlps]
        if type(table) is not nn.Embedding or type(head) is not nn.Linear:
            return False
        known = (nn.Linear, Int8Linear, Int4Linear)
        if any(type(linear) not in known for linear in linears):
            return False
        if any(hooked(part) for part in (table, head, body.rotary_emb, *linears)):
            return False
        tensors = _tensors(model)
        # Levels of small weights and the rotation's frequencies have types of their own.
        matrices = [tensor for tensor in tensors if tensor.dim() > 1]
        dtypes = {tensor.dtype for tensor in matrices if tensor.is_floating_point()}
        devices = {tensor.device for tensor in tensors}
        return devices == {model.device} and dtypes == {table.weight.dtype}

    @staticmethod
    def identity(model: PreTrainedModel) -> tuple[int, ...]:
        """Where all its tensors lie: another one needs another `FusedLlama`."""
        return tuple(tensor.data_ptr() for tensor in _tensors(model))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [R] to [R, C]."""
        return nn.functional.embedding(ids, self._embedding)

    @property
    def bytes_per_place(self) -> int:
        """What the keys and values of a token take in the memory."""
        numbers = 2 * len(self._layers) * self._held * self._width
        return int(numbers * self._embedding.element_size())

    def lay_out(self) -> None:
        """Have memory for every layer's keys and values before any is written."""
        kind = self._embedding
        for index in range(len(self._layers)):
            self._memory.lay_out(index, self._held, self._width, kind.dtype, kind.device)

    def __call__(self, embeds: Tensor, step: StepPlan) -> Tensor:
        """Embeddings [1, N, C] of any pieces of texts -> hidden states [N, C] after the last norm."""
        self.lay_out()
        kernels, memory = self._kernels, self._memory
        positions = step.positions[0]
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = embeds[0]
        for index, layer in enumerate(self._layers):
            states = self._split(kernels.rows(hidden, layer.qkv, norm=layer.before))
            query = kernels.rotate_and_store(*states, cos, sin, *memory.layer(index), step.places)
            found = attend(step, index, query, layer.scaling)
            hidden = self._finish(hidden, found, layer)
        return kernels.rms_norm(hidden, self._norm.weight, self._norm.eps)

    def answers(self, embeds: Tensor, step: Answers) -> Tensor:
        """Embeddings [R, C] of one new token a request -> logits [R, V]. Waits for nothing."""
        kernels, memory = self._kernels, self._memory
        cos = self._cos.index_select(0, step.positions)
        sin = self._sin.index_select(0, step.positions)
        hidden = embeds
        for index, layer in enumerate(self._layers):
            states = self._split(kernels.rows(hidden, layer.qkv, norm=layer.before))
            keys, values = memory.layer(index)
            found = kernels.paged_step(
                *states, cos, sin, keys, values,
                step.places, step.table, step.lengths, layer.scaling,
            )  # fmt: skip
            hidden = self._finish(hidden, found, layer)
        return kernels.rows(hidden, [self._head], norm=self._norm)

    def prompt(self, embeds: Tensor, step: Prompt) -> Tensor:
        """Embeddings [N, C] of new tokens of one request -> logits [1, V] after the last of them.

        Waits for nothing.
        """
        kernels, memory = self._kernels, self._memory
        cos = self._cos.index_select(0, step.positions)
        sin = self._sin.index_select(0, step.positions)
        # What follows each layer's second sum is the next layer's norm: sum and norm are one kernel.
        norms = [layer.before for layer in self._layers[1:]] + [self._norm]
        first = self._layers[0].before
        hidden, normed = embeds, kernels.rms_norm(embeds, first.weight, first.eps)
        for index, (layer, then) in enumerate(zip(self._layers, norms, strict=True)):
            states = self._split(kernels.rows(normed, layer.qkv))
            keys, values = memory.layer(index)
            query = kernels.rotate_and_store(*states, cos, sin, keys, values, step.places)
            found = kernels.paged_prompt(query, keys, values, step.table, step.span, layer.scaling)
            more = kernels.rows(found.flatten(1), [layer.out])
            after = layer.after
            normed, hidden = kernels.add_rms_norm(more, hidden, after.weight, after.eps)
            more = kernels.rows(kernels.gated_rows(normed, layer.gate, layer.up), [layer.down])
            normed, hidden = kernels.add_rms_norm(more, hidden, then.weight, then.eps)
        return kernels.rows(normed.index_select(0, step.last), [self._head])

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [N, Q, D], key and value [N, H, D]: views of their common product."""
        heads, held = self._heads, self._held
        states = qkv.view(len(qkv), heads + 2 * held, self._width)
        return states[:, :heads], states[:, heads : heads + held], states[:, heads + held :]

    def _finish(self, hidden: Tensor, found: Tensor, layer: _Layer) -> Tensor:
        """A layer's part behind its attention, whose result is `found` [N, Q, D]."""
        kernels = self._kernels
        hidden = kernels.rows(found.flatten(1), [layer.out], residual=hidden)
        gated = kernels.gated_rows(hidden, layer.gate, layer.up, norm=layer.after)
        return kernels.rows(gated, [layer.down], residual=hidden)


def _body_and_ends(model: Any) -> tuple[Any, Any, Any]:
    """The layers, the output matrix and the embeddings."""
    return model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings()


def _tensors(model: PreTrainedModel) -> list[Tensor]:
    """Everything that a step reads."""
    return [t for part in _body_and_ends(model) for t in (*part.parameters(), *part.buffers())]


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before=_norm(layer.input_layernorm),
        qkv=(_matrix(attention.q_proj), _matrix(attention.k_proj), _matrix(attention.v_proj)),
        out=_matrix(attention.o_proj),
        after=_norm(layer.post_attention_layernorm),
        gate=_matrix(mlp.gate_proj),
        up=_matrix(mlp.up_proj),
        down=_matrix(mlp.down_proj),
        scaling=attention.scaling,
    )


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.variance_epsilon)


def _matrix(linear: nn.Linear | Int8Linear | Int4Linear) -> Matrix:
    if isinstance(linear, nn.Linear):
        return Dense(linear.weight, linear.bias)
    return linear.matrix
