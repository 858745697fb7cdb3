"""Every operation in torch: it runs on any device, and the fused kernels are compared with it.

It is written to be read. `rope_and_cache` reads slots on the host, so a step of these operations
cannot be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vip_llava.kernels.values import (
    BLOCK_SIZE,
    DecodeBatch,
    Dense,
    Int4,
    Int8,
    Matrix,
    Norm,
    PrefillChunk,
)

__all__ = [
    "CAPTURABLE",
    "add_rms_norm",
    "decode_attention",
    "dequantized",
    "linear",
    "packed_levels",
    "paged_attention",
    "prefill_attention",
    "rms_norm",
    "rope_and_cache",
    "silu_and_mul",
    "swiglu",
]


CAPTURABLE = False
"""Whether a CUDA graph may be captured of these."""


def linear(
    x: Tensor,
    matrices: Sequence[Matrix],
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """x [M, K], normed if given, times each matrix, side by side, plus residual: [M, all N]."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    parts = [_product(x, matrix) for matrix in matrices]
    found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return found if residual is None else residual + found


def swiglu(x: Tensor, gate: Matrix, up: Matrix, norm: Norm | None = None) -> Tensor:
    """silu(x gate) * (x up), x normed if given: [M, K] -> [M, N]."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    return F.silu(_product(x, gate)) * _product(x, up)


def dequantized(matrix: Int8 | Int4) -> Tensor:
    """The weights [N, K] that a quantized matrix stands for, in the dtype of its scales."""
    if isinstance(matrix, Int8):
        return matrix.weight.to(matrix.scale.dtype) * matrix.scale[:, None]
    outputs, groups, _ = matrix.scale.shape
    size = 2 * matrix.packed.shape[1] // groups
    words = matrix.packed.view(outputs, groups, -1, _word_bytes(size))
    pairs = words.transpose(2, 3).reshape(outputs, -1)
    levels = matrix.scale.new_empty((outputs, pairs.shape[1], 2))
    # In place, so that a large matrix is in memory only once.
    levels[:, :, 0] = pairs & 15
    levels[:, :, 1] = pairs >> 4
    grouped = levels.view(outputs, groups, size)
    torch.addcmul(matrix.low, grouped, matrix.scale, out=grouped)
    return grouped.view(outputs, -1)


def packed_levels(levels: Tensor) -> Tensor:
    """Levels 0 to 15, uint8 [N, groups, inputs of a group], packed as in `Int4`: [N, K/2]."""
    outputs, groups, size = levels.shape
    pairs = levels[:, :, ::2] | (levels[:, :, 1::2] << 4)
    return pairs.view(outputs, groups, _word_bytes(size), -1).transpose(2, 3).reshape(outputs, -1)


def _word_bytes(size: int) -> int:
    """Bytes of the words that a group of `size` inputs is packed in."""
    return 4 if size % 8 == 0 else 1


def _product(x: Tensor, matrix: Matrix) -> Tensor:
    bias = None if matrix.bias is None else matrix.bias.to(x.dtype)
    if isinstance(matrix, Dense):
        return F.linear(x, matrix.weight, bias)
    if isinstance(matrix, Int4):
        return F.linear(x, dequantized(matrix).to(x.dtype), bias)
    # The scale is applied to the product, which has fewer elements than the weight.
    y = F.linear(x, matrix.weight.to(x.dtype)) * matrix.scale.to(x.dtype)
    return y if bias is None else y + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rows [M, K] over their root mean square, times weight [K]."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and that sum."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[M, 2I] -> [M, I]: silu of the first half times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope_and_cache(
    qkv: tuple[Tensor, Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    slot_mapping: Tensor,
) -> Tensor:
    """Rotate q and k by their positions, store k and v in the cache; returns the rotated q.

    qkv: [N, Q, D], [N, H, D] and [N, H, D]; may be views of one product with a wider row.
    rotary: cos and sin [N, D], as transformers makes them.
    cache: keys and values [P, H, D], written at slot_mapping [N]; a negative slot is not written,
        the others are distinct.
    """
    q, k, v = qkv
    slots, k = slot_mapping, _rotated(k, *rotary)
    stored = slots >= 0
    if not bool(stored.all()):
        slots, k, v = slots[stored], k[stored], v[stored]
    cache[0].index_copy_(0, slots.long(), k)
    cache[1].index_copy_(0, slots.long(), v)
    return _rotated(q, *rotary)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    crossed = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos.unsqueeze(1) + crossed * sin.unsqueeze(1)


def paged_attention(
    query: Tensor, cache: tuple[Tensor, Tensor], batch: DecodeBatch, scale: float
) -> Tensor:
    """Attention of one token of each sequence over its own slots: query [R, Q, D] -> [R, Q, D].

    cache: keys and values [P, H, D] with Q a multiple of H; the new tokens are stored already.
    Only slots of the sequence's tokens are read.
    """
    sequences, heads, width = query.shape
    kv_heads = cache[0].shape[1]
    at = torch.arange(batch.block_tables.shape[1] * BLOCK_SIZE, device=query.device)
    visible = at < batch.lengths.long().unsqueeze(1)
    blocks = batch.block_tables.long()[:, at // BLOCK_SIZE]
    slots = torch.where(visible, blocks * BLOCK_SIZE + at % BLOCK_SIZE, 0)
    # Masking alone would not do: 0 times what is not finite is not 0.
    hidden = ~visible.view(sequences, 1, -1, 1)
    keys, values = (part[slots].transpose(1, 2).masked_fill(hidden, 0) for part in cache)
    # A sequence without tokens attends to one zero, so that no softmax is over nothing.
    empty = (batch.lengths == 0).view(-1, 1, 1, 1) & (at == 0)
    found = F.scaled_dot_product_attention(
        query.view(sequences, kv_heads, heads // kv_heads, width), keys, values,
        attn_mask=visible.view(sequences, 1, 1, -1) | empty, scale=scale,
    )  # fmt: skip
    return found.reshape(sequences, heads, width)


def decode_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    batch: DecodeBatch,
    scale: float,
) -> Tensor:
    """`rope_and_cache`, then `paged_attention` of the rotated query: [R, Q, D].

    The output of a row with a negative slot is finite and has no meaning.
    """
    query = rope_and_cache(qkv, rotary, cache, batch.slot_mapping)
    return paged_attention(query, cache, batch, scale)


def prefill_attention(
    query: Tensor, cache: tuple[Tensor, Tensor], chunk: PrefillChunk, scale: float
) -> Tensor:
    """Causal attention of the new tokens of one sequence: query [N, Q, D] -> [N, Q, D].

    cache: keys and values [P, H, D]; those of the new tokens are stored already. The output of
    padding has no meaning.
    """
    count, heads, _ = query.shape
    start, length = chunk.span.long()
    at = torch.arange(len(chunk.block_table) * BLOCK_SIZE, device=query.device)
    stored = at < length
    slots = torch.where(stored, chunk.block_table.long()[at // BLOCK_SIZE] * BLOCK_SIZE, 0)
    slots = slots + at % BLOCK_SIZE * stored
    behind = (start + torch.arange(count, device=query.device)).unsqueeze(1) - at
    shared = heads // cache[0].shape[1]
    keys, values = (
        part[slots].masked_fill(~stored.view(-1, 1, 1), 0).repeat_interleave(shared, dim=1)
        for part in cache
    )
    found = F.scaled_dot_product_attention(
        query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1),
        attn_mask=(behind >= 0) & stored, scale=scale,
    )  # fmt: skip
    return found.transpose(0, 1)
