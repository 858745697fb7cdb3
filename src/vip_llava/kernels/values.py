"""Weights as the kernels take them: a matrix in one of three formats, and a norm.

They hold tensors that belong to somebody else, copy nothing and check nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["BLOCK_TOKENS", "Dense", "Int4", "Int8", "Matrix", "Norm"]

BLOCK_TOKENS = 16
"""Places of a block of the memory: its number times this is its first place."""


@dataclass(frozen=True, slots=True)
class Dense:
    """weight [N, K] in the type of the rows; bias [N]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Int8:
    """weight int8 [N, K], times scale [N]; bias [N]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Int4:
    """Levels 0 to 15 in packed [N, K/2], two in a byte; `plain.packed_levels` makes it.

    A weight is low + level * scale; those are [N, K/group, 1]. bias [N]. A byte has an even input
    in its low half and the next one in its high half. A group of 32 inputs is four words of four
    bytes; byte b of word i has inputs 8 b + 2 i and the next one. So a thread that has all four
    words finds inputs that lie side by side at the same bits.
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
