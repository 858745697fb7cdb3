"""Every operation in plain torch: for every device, and what the fused kernels are compared with.

It is written to be read. `rotate_and_store` looks at places on the host, so a step made of these can't
be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vip_llava.kernels.values import BLOCK_TOKENS, Dense, Int4, Int8, Matrix, Norm

__all__ = [
    "CAPTURABLE",
    "add_rms_norm",
    "dequantized",
    "gated_rows",
    "packed_levels",
    "paged_decode",
    "paged_prompt",
    "paged_step",
    "rms_norm",
    "rotate_and_store",
    "rows",
    "silu_and_mul",
]


CAPTURABLE = False
"""Whether a CUDA graph may be made of these."""


def rows(
    x: Tensor,
    matrices: Sequence[Matrix],
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """x [M, K], normed if asked, times each matrix, side by side, plus residual: [M, all N]."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    parts = [_product(x, matrix) for matrix in matrices]
    found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return found if residual is None else residual + found


def gated_rows(x: Tensor, gate: Matrix, up: Matrix, norm: Norm | None = None) -> Tensor:
    """silu(x gate) * (x up): [M, K] -> [M, N]."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    return F.silu(_product(x, gate)) * _product(x, up)


def dequantized(matrix: Int8 | Int4) -> Tensor:
    """The weights [N, K] that a matrix stands for, in the type of its scales."""
    if isinstance(matrix, Int8):
        return matrix.weight.to(matrix.scale.dtype) * matrix.scale[:, None]
    outputs, groups, _ = matrix.scale.shape
    size = 2 * matrix.packed.shape[1] // groups
    words = matrix.packed.view(outputs, groups, -1, _word_bytes(size))
    pairs = words.transpose(2, 3).reshape(outputs, -1)
    levels = matrix.scale.new_empty((outputs, pairs.shape[1], 2))
    # Written where they stay: all of a large matrix is in memory once.
    levels[:, :, 0] = pairs & 15
    levels[:, :, 1] = pairs >> 4
    grouped = levels.view(outputs, groups, size)
    torch.addcmul(matrix.low, grouped, matrix.scale, out=grouped)
    return grouped.view(outputs, -1)


def packed_levels(levels: Tensor) -> Tensor:
    """Levels 0 to 15, uint8 [N, groups, inputs of a group], packed as `Int4` says: [N, K/2]."""
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
    # The scale is applied to the product, which has fewer elements.
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


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
) -> Tensor:
    """Turn q [R, Q, D] and k [R, H, D] by their positions; store k and v in the memory.

    q, k, v: may be views of one result whose rows are further apart. cos, sin: [R, D], as
    transformers makes them. keys, values: [P, H, D], written at places [R]; a negative place is
    not written, the others are different. Returns the turned q [R, Q, D].
    """
    to, turned = places, _turned(k, cos, sin)
    wanted = places >= 0
    if not bool(wanted.all()):
        to, turned, v = places[wanted], turned[wanted], v[wanted]
    keys.index_copy_(0, to.long(), turned)
    values.index_copy_(0, to.long(), v)
    return _turned(q, cos, sin)


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    crossed = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos.unsqueeze(1) + crossed * sin.unsqueeze(1)


def paged_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of one new token of each request over its own places: query [R, Q, D] -> [R, Q, D].

    keys, values: [P, H, D], with Q a multiple of H. table: int32 [R, W], the numbers of each
    request's blocks in the order of its text; only those that hold its tokens are looked at.
    lengths: int32 [R], its tokens, the new one included; 0 gives zeros. window: only so many of
    the latest tokens are seen.
    """
    requests, heads, width = query.shape
    held = keys.shape[1]
    at = torch.arange(table.shape[1] * BLOCK_TOKENS, device=table.device)
    long = lengths.long().unsqueeze(1)
    seen = at < long
    if window is not None:
        seen = seen & (at >= long - window)
    blocks = table.long()[:, at // BLOCK_TOKENS]
    # Places that are not seen are not read either: what is there may not be finite.
    places = torch.where(seen, blocks * BLOCK_TOKENS + at % BLOCK_TOKENS, 0)
    hidden = ~seen.view(requests, 1, -1, 1)
    found_keys = keys[places].transpose(1, 2).masked_fill(hidden, 0)  # [R, H, L, D]
    found_values = values[places].transpose(1, 2).masked_fill(hidden, 0)
    asked = query.view(requests, held, heads // held, width)
    mask = seen.view(requests, 1, 1, -1)
    # A request without tokens sees its (empty) first place, so that no softmax is over nothing.
    mask = mask | ((lengths == 0).view(-1, 1, 1, 1) & (at == 0))
    found = F.scaled_dot_product_attention(
        asked, found_keys, found_values, attn_mask=mask, scale=scale
    )
    return found.reshape(requests, heads, width)


def paged_prompt(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    span: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of new tokens of one text, whose keys and values are stored: query [N, Q, D].

    keys, values: [P, H, D]. table: int32 [W], the text's blocks in order. span: int32 [2], tokens
    before the new ones and all tokens; each sees itself and all before it. Queries beyond the end
    fill up, and what is found for them means nothing. Returns [N, Q, D].
    """
    count, heads, _ = query.shape
    start, length = span.long()
    at = torch.arange(len(table) * BLOCK_TOKENS, device=table.device)
    there = at < length
    places = torch.where(there, table.long()[at // BLOCK_TOKENS] * BLOCK_TOKENS, 0)
    places = places + at % BLOCK_TOKENS * there
    behind = (start + torch.arange(count, device=table.device)).unsqueeze(1) - at
    seen = (behind >= 0) & there
    if window is not None:
        seen &= behind < window
    shared = heads // keys.shape[1]
    found_keys, found_values = (
        memory[places].masked_fill(~there.view(-1, 1, 1), 0).repeat_interleave(shared, dim=1)
        for memory in (keys, values)
    )
    found = F.scaled_dot_product_attention(
        query.transpose(0, 1), found_keys.transpose(0, 1), found_values.transpose(0, 1),
        attn_mask=seen, scale=scale,
    )  # fmt: skip
    return found.transpose(0, 1)


def paged_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """`rotate_and_store`, then `paged_decode` with what it gives."""
    query = rotate_and_store(q, k, v, cos, sin, keys, values, places)
    return paged_decode(query, keys, values, table, lengths, scale, window)
