"""Pack rows: choose the rows that share one sequence of a maximum number of tokens.

A padded batch of rows of 60 and 2,000 tokens is mostly padding; a packed sequence has none. Best-fit
decreasing within windows of a random order gives packs with rows of all lengths, and equal seeds give
equal packs. This module knows only lengths; `collators.PackedCollator` builds the tensors.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch

from vip_llava.data.batch_sampler import epoch_generator, fingerprint

__all__ = ["PackedBatchSampler", "pack"]

_WINDOW = 2048


class PackedBatchSampler:
    """The packs of each epoch, `batches(epoch)`. Every row occurs exactly once per epoch.

    The packs are the same in every epoch, so that epochs have the same number of steps; their order
    differs.
    """

    def __init__(self, lengths: Sequence[int], max_tokens: int, *, seed: int = 0) -> None:
        """`lengths`: tokens of the rows (the sign is ignored); `max_tokens`: of a pack."""
        self.seed = seed
        self.max_tokens = max_tokens
        self._packs = pack(lengths, max_tokens, seed=seed)
        self._tokens = sum(map(abs, lengths))
        self._lengths = fingerprint(lengths)

    @property
    def identity(self) -> str:
        """A string that is equal for samplers with equal batches in every epoch."""
        return f"packed: {self.max_tokens} tokens, seed {self.seed}, lengths {self._lengths}"

    @property
    def fill_ratio(self) -> float:
        """The fraction of the packs' capacity that holds tokens."""
        return self._tokens / (len(self._packs) * self.max_tokens) if self._packs else 1.0

    def batches(self, epoch: int) -> list[list[int]]:
        """The row numbers of each pack."""
        order = torch.randperm(len(self._packs), generator=epoch_generator(self.seed, epoch))
        return [list(self._packs[place]) for place in order.tolist()]


def pack(
    lengths: Sequence[int], max_tokens: int, *, seed: int, window: int = _WINDOW
) -> list[list[int]]:
    """Row numbers of each pack; each number occurs once.

    Args:
        lengths: tokens of the rows; the sign is ignored. A row longer than `max_tokens` gets a pack
            of its own.
        max_tokens: capacity of a pack.
        seed: of the shuffling.
        window: number of rows of the shuffled order that are packed together.

    Raises:
        ValueError: a `max_tokens` below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    packs: list[list[int]] = []
    for start in range(0, len(drawn), window):
        packs += _packed(drawn[start : start + window], lengths, max_tokens)
    return packs


def _packed(rows: list[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    packs: list[list[int]] = []
    # (free tokens, pack), fewest first: the first that is large enough fits best.
    room: list[tuple[int, int]] = []
    for row in sorted(rows, key=lambda index: -abs(lengths[index])):
        length = abs(lengths[row])
        place = bisect.bisect_left(room, (length, -1))
        if place == len(room):
            left, number = max_tokens, len(packs)
            packs.append([])
        else:
            left, number = room.pop(place)
        packs[number].append(row)
        if left > length:
            bisect.insort(room, (left - length, number))
    return packs
