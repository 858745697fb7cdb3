"""A frozen Llama layer in two halves, with attention between them left to whoever attends.

Between layers travel the residual stream and what the last MLP adds to it, not yet added: adding is
done where the sum is read. A half keeps its sum and, the second, the gate's two factors; attention
keeps its own. Slopes exist for what comes in, never for weights.

It knows a layer's modules and the operations of `plain`. Shape letters as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vip_llava.training.frozen import plain

__all__ = ["Answered", "Asked", "Exact", "Products", "operations"]


class Products(Protocol):
    """Products with weights [N, K] that don't learn, and what makes the numbers that go in.

    What is given to a product may be of any kind: only these operations look into it.
    """

    def add_norm(
        self, x: Tensor, more: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Any]:
        """As in `plain`; the norm is given to a product."""

    def gate(self, first: Tensor, second: Tensor) -> Any:
        """As in `plain`, to be given."""

    def gate_backward(self, slope: Tensor, first: Tensor, second: Tensor) -> Any:
        """As in `plain`, to be given."""

    def given(self, pieces: Sequence[Tensor]) -> Any:
        """Anything else [T, ..] to be given: one piece forth, one for each weight back."""

    def forth(self, x: Any, linears: Sequence[nn.Linear]) -> list[Tensor]:
        """x [T, K] times the turned weight of each."""

    def back(self, slopes: Any, linears: Sequence[nn.Linear]) -> Tensor:
        """The sum of slopes [T, N] times weights: [T, K]."""


class Exact:
    """Products as the weights are."""

    def add_norm(
        self, x: Tensor, more: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """As `Products`."""
        total, normed = operations(x).add_norm(x, more, weight, eps)
        return total, (normed,)

    def gate(self, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        """As `Products`."""
        return (operations(first).gate(first, second),)

    def gate_backward(self, slope: Tensor, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        """As `Products`."""
        both: tuple[Tensor, Tensor] = operations(first).gate_backward(slope, first, second)
        return both

    def given(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `Products`."""
        return pieces

    def forth(self, x: Sequence[Tensor], linears: Sequence[nn.Linear]) -> list[Tensor]:
        """As `Products`."""
        return [F.linear(x[0], linear.weight) for linear in linears]

    def back(self, slopes: Sequence[Tensor], linears: Sequence[nn.Linear]) -> Tensor:
        """As `Products`; a sum is made by the product that comes last."""
        found = slopes[0] @ linears[0].weight
        for slope, linear in zip(slopes[1:], linears[1:], strict=True):
            found.addmm_(slope, linear.weight)
        return found


def operations(x: Tensor) -> ModuleType:
    """`gpu` for tensors on CUDA, else `plain`."""
    if x.device.type != "cuda":
        return plain
    from vip_llava.training.frozen import gpu

    return gpu


class Asked(torch.autograd.Function):
    """Norm, queries, keys and values: (x, more, angles) -> (x + more, q, k, v), each [T, ..]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        more: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        layer: Any,
        products: Products,
    ) -> tuple[Tensor, ...]:
        do, norm, attention = operations(x), layer.input_layernorm, layer.self_attn
        total, normed = products.add_norm(x, more, norm.weight, norm.variance_epsilon)
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = products.forth(normed, linears)
        do.turn(q, cos, sin, inplace=True)
        do.turn(k, cos, sin, inplace=True)
        ctx.save_for_backward(total, cos, sin)
        ctx.norm, ctx.linears, ctx.products, ctx.both = norm, linears, products, more is not None
        return total, q, k, v

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        total, cos, sin = ctx.saved_tensors
        do = operations(total)
        residual, d_q, d_k, d_v = slopes
        turned = [do.turn(slope, cos, sin, back=True) for slope in (d_q, d_k)]
        given = ctx.products.given([*turned, d_v.contiguous()])
        lean = ctx.products.back(given, ctx.linears)
        norm = ctx.norm
        made = do.norm_backward(lean, total, norm.weight, norm.variance_epsilon, residual)
        return made, made if ctx.both else None, None, None, None, None


class Answered(torch.autograd.Function):
    """What attention found, and the MLP: (x, found) -> (x + answer, what the MLP adds)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, found: Tensor, layer: Any, products: Products
    ) -> tuple[Tensor, Tensor]:
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        (answer,) = products.forth(products.given([found]), [layer.self_attn.o_proj])
        total, normed = products.add_norm(x, answer, norm.weight, norm.variance_epsilon)
        first, second = products.forth(normed, (mlp.gate_proj, mlp.up_proj))
        (more,) = products.forth(products.gate(first, second), [mlp.down_proj])
        ctx.save_for_backward(total, first, second)
        ctx.layer, ctx.products = layer, products
        return total, more

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        total, first, second = ctx.saved_tensors
        do, layer, products = operations(total), ctx.layer, ctx.products
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        residual, more = slopes
        lean = products.back(products.given([more]), [mlp.down_proj])
        both = products.gate_backward(lean, first, second)
        lean = products.back(both, (mlp.gate_proj, mlp.up_proj))
        made = do.norm_backward(lean, total, norm.weight, norm.variance_epsilon, residual)
        found = products.back(products.given([made]), [layer.self_attn.o_proj])
        return made, found, None, None
