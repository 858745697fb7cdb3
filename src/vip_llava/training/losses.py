"""The loss of supervised positions only, without the logits of all positions ever existing.

Of a row's 700 positions 600 are an image and 50 a question: only the answer is learned, so only its
hidden states go through the head, some hundred at a time, and before it through the last layer, if
that is a plain Llama's. The gradients are made in the forward
pass, chunk by chunk, so that no chunk's logits wait for the backward pass.

This module knows hidden states, a head and labels. It knows no model class but the one call that
`compute_loss_inside` replaces, and no optimizer.
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

from vip_llava.training.sparse_last_layer import READ, ends_early, read_some

__all__ = ["IGNORED", "compute_loss_inside", "head_loss", "supervised_count", "supervised_loss"]

IGNORED = -100
# Logits of one chunk in fp32 take at most 128 MiB.
_CHUNK_VALUES = 2**25
_CHUNK_OF_UNKNOWN = 512


def supervised_count(labels: Tensor) -> int:
    """How many labels [.., T] are learned: the first of a row has nothing that predicts it."""
    return int((labels[..., 1:] != IGNORED).sum())


def supervised_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    *,
    num_items: int | Tensor | None = None,
    chunk: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Cross entropy of the next token, summed over supervised positions and divided.

    Args:
        hidden: last hidden states [.., T, C].
        lm_head_weight: [V, C].
        labels: [.., T] as the model's inputs have them (not shifted); -100 is not learned.
        num_items: divides the sum; without it, the number of supervised positions here. Give the
            number of a whole step (all its batches, all ranks) and the losses of its batches add up
            to the exact mean over its tokens.
        chunk: positions at a time; without it, as many as give 2**25 logits.
        bias: of the head [V].

    Returns:
        A float32 scalar (float64 for such inputs); 0 and connected to the graph where nothing is
        supervised. Sums are kept in float32 whatever the inputs' type.
    """
    places, targets = _supervised(labels)
    states = _picked(hidden, places)
    targets = targets.to(hidden.device)
    total = _sum(states, lm_head_weight, bias, targets, chunk)
    return _divided(total, targets, num_items)


def head_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    *,
    num_items: int | Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`supervised_loss` through a head module, which is called exactly once if it is a plain Linear.

    Sharded training (FSDP2, ZeRO-3) gathers a module's weights around its call, and the ranks
    have to make the same number of calls: so the loss runs inside that one call. A head that an
    adapter wraps or that is quantized is called for each chunk instead, and its logits are made
    again in the backward pass.
    """
    places, targets = _supervised(labels)
    return _head_loss(head, _picked(hidden, places), targets, num_items, chunk)


def _head_loss(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    num_items: int | Tensor | None,
    chunk: int | None = None,
) -> Tensor:
    targets = targets.to(states.device)
    if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward:
        total = _inside(head, states, targets, chunk)
    else:
        size = chunk or _CHUNK_OF_UNKNOWN
        # One call even where nothing is supervised, so that the head gets a gradient of zeros.
        parts = zip(torch.split(states, size), torch.split(targets, size), strict=True)
        sums = [checkpoint(_chunk_sum, head, *part, use_reentrant=False) for part in parts]
        total = torch.stack(sums).sum()
    return _divided(total, targets, num_items)


def compute_loss_inside(model: PreTrainedModel) -> None:
    """From now on `model(**batch, labels=...)` gives the supervised loss and no logits.

    `num_items_in_batch` (transformers' name) is the denominator. Calls without labels, such as
    generation, are as before. The loss is made inside the model's own call, so wrappers around
    it (DDP, FSDP, adapters, accelerate's precision) see nothing unusual.
    """
    usual = type(model).forward
    read_some(model)

    @functools.wraps(usual)  # generation and the trainer read the names of the arguments
    def forward(
        self: Any,
        *args: Any,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return usual(self, *args, **kwargs)
        # Nothing is generated from here; a cache would only hold keys and values back.
        kwargs = {"use_cache": False, **kwargs}
        places, targets = _supervised(labels)
        early = ends_early(self, kwargs)
        if early:
            kwargs[READ] = places
        hidden = self.model(*args, **kwargs).last_hidden_state
        states = hidden.flatten(0, -2) if early else _picked(hidden, places)
        # Looked up now: an adapter may have wrapped the head since.
        head = self.get_output_embeddings()
        loss = _head_loss(head, states, targets, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss)

    owner: Any = model
    owner.forward = types.MethodType(forward, model)


def _supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Places [N] that predict a learned label, counted through all rows, and those labels [N]."""
    following = F.pad(labels[..., 1:], (0, 1), value=IGNORED).flatten()
    places = (following != IGNORED).nonzero().flatten()
    return places, following.index_select(0, places)


def _picked(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.flatten(0, -2).index_select(0, places.to(hidden.device))


def _divided(total: Tensor, targets: Tensor, num_items: int | Tensor | None) -> Tensor:
    if isinstance(num_items, Tensor):
        return total / num_items.to(total.device).clamp(min=1)
    return total / max(targets.numel() if num_items is None else num_items, 1)


def _inside(head: nn.Linear, states: Tensor, targets: Tensor, chunk: int | None) -> Tensor:
    """The sum as the one call of `head`, so that hooks around the call have gathered its weight."""

    def forward(given: Tensor) -> Tensor:
        return _sum(given, head.weight, head.bias, targets, chunk)

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


def _chunk_sum(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    logits = head(states)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, reduction="sum")


def _sum(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None
) -> Tensor:
    size = chunk or max(_CHUNK_VALUES // weight.shape[0], 1)
    with_gradients = torch.is_grad_enabled()
    apply: Any = _SummedLoss.apply
    total: Tensor = apply(states, weight, bias, targets, size, with_gradients)
    return total


class _SummedLoss(torch.autograd.Function):
    """Sum of cross entropies of states [N, C] through a head [V, C]; gradients made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        size: int,
        with_gradients: bool,
    ) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        total = torch.zeros((), dtype=wide, device=states.device)
        d_states = torch.zeros_like(states) if wanted[0] else None
        # Sums over chunks stay in the wide type.
        d_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
        for start in range(0, len(states), size):
            part, target = states[start : start + size], targets[start : start + size, None]
            narrow = F.linear(part, weight, bias)
            logits = narrow.to(wide, copy=True)
            largest = logits.logsumexp(-1, keepdim=True)
            total += (largest - logits.gather(1, target)).sum()
            if not any(wanted):
                continue
            # softmax less one at the target, in place of the logits
            slope = logits.sub_(largest).exp_()
            slope.scatter_add_(1, target, -torch.ones_like(target, dtype=wide))
            if d_bias is not None:
                d_bias += slope.sum(0)
            slope = slope.to(narrow.dtype)
            if d_states is not None:
                d_states[start : start + size] = slope @ weight
            if d_weight is not None:
                d_weight += slope.T @ part
        kept = (d_states, d_weight, d_bias)
        parts = zip(kept, (states, weight, bias), strict=True)
        ctx.save_for_backward(
            *(d if d is None or of is None else d.to(of.dtype) for d, of in parts)
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = (None if d is None else (d * grads[0]).to(d.dtype) for d in ctx.saved_tensors)
        return (*made, None, None, None)
