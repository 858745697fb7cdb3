"""Which rows share a packed row: as many as fit into a number of tokens.

Rows of 60 and of 2,000 tokens in one padded batch are mostly padding; side by side in one long row
they are none. Best fit, longest first, inside windows of a random order, so that a pack
holds rows of all lengths and no two runs with one seed differ.

It deliberately knows only lengths: the rows are laid out by `batches.PackedCollator`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch

from vip_llava.data.batch_sampler import epoch_generator, fingerprint

__all__ = ["PackedBatches", "pack"]

_WINDOW = 2048


class PackedBatches:
    """All packs of an epoch, `batches(epoch)`; every row comes exactly once.

    Which rows share a pack is decided once, so that epochs have the same number of steps; each
    epoch has its own order of packs.
    """

    def __init__(self, lengths: Sequence[int], max_tokens: int, *, seed: int = 0) -> None:
        """`lengths`: tokens of rows (the sign does not count); `max_tokens`: of a pack."""
        self.seed = seed
        self.max_tokens = max_tokens
        self._packs = pack(lengths, max_tokens, seed=seed)
        self._tokens = sum(map(abs, lengths))
        self._lengths = fingerprint(lengths)

    @property
    def identity(self) -> str:
        """The same for two packings that are the same in each epoch."""
        return f"packed: {self.max_tokens} tokens, seed {self.seed}, lengths {self._lengths}"

    @property
    def filled(self) -> float:
        """Share of the packs' room that holds tokens."""
        return self._tokens / (len(self._packs) * self.max_tokens) if self._packs else 1.0

    def batches(self, epoch: int) -> list[list[int]]:
        """The row numbers of each pack."""
        order = torch.randperm(len(self._packs), generator=epoch_generator(self.seed, epoch))
        return [list(self._packs[place]) for place in order.tolist()]


def pack(
    lengths: Sequence[int], max_tokens: int, *, seed: int, window: int = _WINDOW
) -> list[list[int]]:
    """Row numbers of each pack, each number once.

    `lengths`: tokens of rows, negative ones count as positive. A row longer than `max_tokens` gets
    a pack of its own. `window`: so many rows of the shuffled order are packed at a time.
    Raises ValueError for a `max_tokens` below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"a pack needs room for at least one token, not {max_tokens}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    packs: list[list[int]] = []
    for start in range(0, len(drawn), window):
        packs += _packed(drawn[start : start + window], lengths, max_tokens)
    return packs


def _packed(rows: list[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    packs: list[list[int]] = []
    # (room left, pack), smallest room first: the first that is large enough fits best.
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
