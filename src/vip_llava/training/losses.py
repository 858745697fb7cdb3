"""The training loss: next-token cross entropy over supervised positions only.

Of the 700 positions of a typical row 600 are an image and 50 a question; only the answer is
supervised. So only the hidden states that predict a supervised token go through the head
(`chunked_cross_entropy`), and through the last layer where that is possible (`sparse_last_layer`).

This module knows hidden states, a head and labels, and the forward method of LLaVA models that
`patch_loss` replaces. It does not know the trainer.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vip_llava.training.chunked_cross_entropy import chunked_cross_entropy
from vip_llava.training.sparse_last_layer import (
    READ_POSITIONS,
    can_read_positions,
    patch_last_layer,
)

__all__ = ["IGNORED_LABEL", "head_loss", "patch_loss", "supervised_positions"]

IGNORED_LABEL = -100
_WRAPPED_HEAD_CHUNK = 512


def patch_loss(model: PreTrainedModel) -> None:
    """Make `model(**batch, labels=...)` return the supervised loss and no logits; in place.

    `num_items_in_batch` (transformers' name) is the denominator. Calls without labels, such as
    generation, are unchanged. The loss is computed inside the model's own forward call, so that
    wrappers (DDP, FSDP, adapters, accelerate's autocast) apply to it as usual.
    """
    original = type(model).forward
    patch_last_layer(model)

    @functools.wraps(original)  # generation and the trainer inspect the argument names
    def forward(
        self: Any,
        *args: Any,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return original(self, *args, **kwargs)
        # Without generation a cache would only keep keys and values alive.
        kwargs = {"use_cache": False, **kwargs}
        positions, targets = supervised_positions(labels)
        sparse = can_read_positions(self, kwargs)
        if sparse:
            kwargs[READ_POSITIONS] = positions
        hidden = self.model(*args, **kwargs).last_hidden_state
        states = hidden.flatten(0, -2)
        if not sparse:
            states = states.index_select(0, positions.to(states.device))
        # Looked up in each call: an adapter may wrap the head after this function was called.
        head = self.get_output_embeddings()
        return CausalLMOutputWithPast(loss=head_loss(head, states, targets, num_items_in_batch))

    owner: Any = model
    owner.forward = types.MethodType(forward, model)


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that predict a supervised token, and those tokens.

    Args:
        labels: [.., T], not shifted; -100 is not supervised, and neither is a row's first label.

    Returns:
        Positions int64 [N] in the flattened rows, and targets int64 [N].
    """
    shifted = F.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL).flatten()
    positions = (shifted != IGNORED_LABEL).nonzero().flatten()
    return positions, shifted.index_select(0, positions)


def head_loss(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    num_items: int | Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Summed cross entropy of states [N, C] through a head against targets [N], divided.

    A plain Linear is called exactly once, because sharded training (FSDP2, ZeRO-3) gathers a
    module's weight around its call and all ranks must make the same number of calls. A quantized
    head, or one with an adapter, is called for each chunk instead, and its logits are recomputed in
    the backward pass.

    Args:
        num_items: the denominator; by default N. With the number of supervised tokens of a whole
            step (all its batches, all ranks) the losses of its batches add up to the exact mean.
        chunk: positions at a time.

    Returns:
        A float32 scalar; 0 and connected to the graph for N = 0.
    """
    targets = targets.to(states.device)
    if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward:
        total = _loss_in_one_call(head, states, targets, chunk)
    else:
        size = chunk or _WRAPPED_HEAD_CHUNK
        # torch.split gives one empty chunk for N = 0, so that the head gets a gradient of zeros.
        chunks = zip(torch.split(states, size), torch.split(targets, size), strict=True)
        sums = [checkpoint(_chunk_loss, head, *each, use_reentrant=False) for each in chunks]
        total = torch.stack(sums).sum()
    if isinstance(num_items, Tensor):
        return total / num_items.to(total.device).clamp(min=1)
    return total / max(targets.numel() if num_items is None else num_items, 1)


def _loss_in_one_call(
    head: nn.Linear, states: Tensor, targets: Tensor, chunk: int | None
) -> Tensor:
    """The summed loss, computed inside one call of `head`, after its hooks gathered the weight."""

    def forward(given: Tensor) -> Tensor:
        return chunked_cross_entropy(given, head.weight, targets, bias=head.bias, chunk=chunk)

    owner: Any = head
    own = head.__dict__.get("forward")
    owner.forward = forward
    try:
        total: Tensor = head(states)
    finally:
        if own is None:
            del owner.forward
        else:
            owner.forward = own
    return total


def _chunk_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    logits = head(states)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, reduction="sum")
