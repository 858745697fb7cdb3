"""What the kernels take: weights in one of three formats, a norm, and the tokens of a step.

These are views of tensors that the caller owns. Nothing is copied or checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["BLOCK_SIZE", "DecodeBatch", "Dense", "Int4", "Int8", "Matrix", "Norm", "PrefillChunk"]

BLOCK_SIZE = 16
"""Tokens of a block of the KV cache. Block `b` has the slots from `b * BLOCK_SIZE` on."""


@dataclass(frozen=True, slots=True)
class Dense:
    """weight [N, K] in the dtype of the activations; bias [N]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Int8:
    """weight int8 [N, K], multiplied by scale [N]; bias [N]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Int4:
    """Levels 0 to 15 in packed [N, K/2], two to a byte; `reference.packed_levels` makes it.

    A weight is low + level * scale; both are [N, K/group, 1]. bias [N]. A byte has an even input
    in its low half and the next one in its high half. A group of 32 inputs is four words of four
    bytes; byte b of word i has inputs 8 b + 2 i and the next one. A thread that has all four words
    thus finds neighbouring inputs at the same bits.
    """

    packed: Tensor
    scale: Tensor
    low: Tensor
    bias: Tensor | None = None


Matrix = Dense | Int8 | Int4


@dataclass(frozen=True, slots=True)
class Norm:
    """A root mean square norm with weight [K]."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """One new token of each of R sequences."""

    slot_mapping: Tensor
    """[R]: the slot of the KV cache that each new token is stored in; negative: not stored."""
    block_tables: Tensor
    """int32 [R, W]: the blocks of each sequence, in the order of its tokens."""
    lengths: Tensor
    """int32 [R]: tokens of each sequence, the new one included; 0 gives zeros."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """N new tokens of one sequence, padded at the end."""

    slot_mapping: Tensor
    """[N]: the slot that each new token is stored in; negative for padding."""
    block_table: Tensor
    """int32 [W]: the blocks of the sequence."""
    span: Tensor
    """int32 [2]: tokens before the new ones, and all tokens of the sequence."""
