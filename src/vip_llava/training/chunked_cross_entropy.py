"""Cross entropy of hidden states through a language-model head, without all logits in memory.

The logits are computed for a chunk of positions at a time, and the gradients of the chunk right
behind them, in the forward pass: no chunk's logits wait for the backward pass. Liger's fused linear
cross entropy works the same way with one Triton kernel for a chunk; this is the version in plain
torch operations, for any device. Sums over chunks are kept in float32 (float64 for such inputs).

It does not know labels, models or the trainer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_cross_entropy"]

# The logits of one chunk take at most 128 MiB in float32.
MAX_CHUNK_LOGITS = 2**25


def chunked_cross_entropy(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Sum of the cross entropies of `states @ weight.T + bias` against `targets`.

    Args:
        states: hidden states [N, C].
        weight: the head's weight [V, C]; bias: its bias [V].
        targets: int64 [N].
        chunk: positions per chunk; by default as many as give 2**25 logits.

    Returns:
        A float32 scalar (float64 for such inputs), connected to the graph also for N = 0.
    """
    size = chunk or max(MAX_CHUNK_LOGITS // weight.shape[0], 1)
    apply: Any = _ChunkedCrossEntropy.apply
    total: Tensor = apply(states, weight, bias, targets, size, torch.is_grad_enabled())
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of cross entropies; gradients are computed in `forward` and scaled in `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        size: int,
        grad_enabled: bool,
    ) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        needed = [grad_enabled and wanted for wanted in ctx.needs_input_grad[:3]]
        total = torch.zeros((), dtype=wide, device=states.device)
        d_states = torch.zeros_like(states) if needed[0] else None
        d_weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if needed[2] and bias is not None else None
        for start in range(0, len(states), size):
            part, target = states[start : start + size], targets[start : start + size, None]
            narrow = F.linear(part, weight, bias)
            logits = narrow.to(wide, copy=True)
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += (normalizer - logits.gather(1, target)).sum()
            if not any(needed):
                continue
            # softmax minus one at the target, in the memory of the logits
            gradient = logits.sub_(normalizer).exp_()
            gradient.scatter_add_(1, target, -torch.ones_like(target, dtype=wide))
            if d_bias is not None:
                d_bias += gradient.sum(0)
            gradient = gradient.to(narrow.dtype)
            if d_states is not None:
                d_states[start : start + size] = gradient @ weight
            if d_weight is not None:
                d_weight += gradient.T @ part
        gradients = (d_states, d_weight, d_bias)
        pairs = zip(gradients, (states, weight, bias), strict=True)
        ctx.save_for_backward(
            *(d if d is None or of is None else d.to(of.dtype) for d, of in pairs)
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if d is None else (d * grads[0]).to(d.dtype) for d in ctx.saved_tensors)
        return (*scaled, None, None, None)
