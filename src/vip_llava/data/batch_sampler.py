"""Which rows come together: rows of like length, and rows with and without images apart.

A batch is as slow as its longest row, and the ranks of a step wait for the slowest. The order is
that of the original for the same torch seed (its published runs can be repeated row by row), and
nothing here remembers anything: seed and epoch say everything.

It deliberately knows only lengths - positive with an image, negative without - and no rows.
"""

from __future__ import annotations

import array
import hashlib
import heapq
from collections.abc import Sequence

import torch

__all__ = [
    "GroupedBatches",
    "epoch_generator",
    "fingerprint",
    "grouped_by_length",
    "grouped_by_modality",
]


class GroupedBatches:
    """All batches of an epoch, `batches(epoch)`; the ranks of a step take consecutive ones in turn.

    Every row comes exactly once. Only the last batch of an epoch may be smaller.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        size: int,
        *,
        together: int = 1,
        seed: int = 0,
        by_modality: bool = True,
    ) -> None:
        """`lengths`: of rows, negative without an image. `size`: rows in a batch. `together`: how
        many batches make a step (ranks times accumulation), which get rows of like length.
        """
        self.lengths, self.size, self.together = list(lengths), size, together
        self.seed, self.by_modality = seed, by_modality

    @property
    def identity(self) -> str:
        """The same for two orders that are the same in each epoch."""
        kind = "modality" if self.by_modality else "length"
        rule = f"{self.size} rows, {self.together} together, seed {self.seed}"
        return f"grouped by {kind}: {rule}, lengths {fingerprint(self.lengths)}"

    def batches(self, epoch: int) -> list[list[int]]:
        """The row numbers of each batch; as many batches in each epoch."""
        if not self.lengths:
            return []
        generator = epoch_generator(self.seed, epoch)
        if self.by_modality:
            order = grouped_by_modality(self.lengths, self.size, self.together, generator)
        else:
            sizes = [abs(length) for length in self.lengths]
            order = grouped_by_length(sizes, self.size, self.together, generator)
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator of its own for each epoch of a run."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def fingerprint(lengths: Sequence[int]) -> str:
    """A short name of these lengths in this order."""
    return hashlib.sha256(array.array("q", lengths).tobytes()).hexdigest()[:16]


def grouped_by_length(
    lengths: Sequence[int], batch: int, world: int, generator: torch.Generator | None = None
) -> list[int]:
    """A random order in which each `world` x `batch` rows are sorted and dealt out evenly.

    Within those rows come first the `batch` of rank 0, then of rank 1, and so on; all ranks get
    about as many tokens, longest row first. `generator` None is torch's global one.
    """
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for step in _steps(drawn, batch * world):
        longest_first = sorted(step, key=lambda index: -lengths[index])
        for share in _dealt(longest_first, lengths, world):
            order += share
    return order


def grouped_by_modality(
    lengths: Sequence[int], batch: int, world: int, generator: torch.Generator | None = None
) -> list[int]:
    """As `grouped_by_length`, with steps of rows with images (positive) or without (negative).

    Whole steps come in random order; what is left of both kinds comes last, together.
    Raises ValueError for a length of 0.
    """
    if 0 in lengths:
        raise ValueError(f"row {list(lengths).index(0)} has the length 0")
    kinds = [
        [index for index, length in enumerate(lengths) if (length > 0) == imaged]
        for imaged in (True, False)
    ]
    if not all(kinds):
        return grouped_by_length(lengths, batch, world, generator)
    whole: list[list[int]] = []
    rest: list[int] = []
    for kind in kinds:
        sizes = [abs(lengths[index]) for index in kind]
        order = grouped_by_length(sizes, batch, world, generator)
        steps = _steps([kind[place] for place in order], batch * world)
        # The last step counts as a rest even if it is whole.
        rest += steps.pop()
        whole += steps
    mixed = torch.randperm(len(whole), generator=generator).tolist()
    return [index for place in mixed for index in whole[place]] + sorted(rest)


def _steps(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _dealt(indices: list[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Each row in turn to the rank that has the fewest tokens so far; as many rows to each.

    Where they can't have as many, row after row in turn.
    """
    if len(indices) % ranks:
        return [indices[rank::ranks] for rank in range(ranks)]
    room = len(indices) // ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    waiting = [(0, rank) for rank in range(ranks)]
    for index in indices:
        tokens, rank = heapq.heappop(waiting)
        shares[rank].append(index)
        if len(shares[rank]) < room:
            heapq.heappush(waiting, (tokens + lengths[index], rank))
    return shares
