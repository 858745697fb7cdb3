"""Batch sampler: groups rows of similar length, and rows with and without images apart.

A batch is as slow as its longest row, and the ranks of a step wait for the slowest. The order equals
the original's for the same torch seed, so its published runs can be repeated row by row. The sampler
is stateless: seed and epoch determine every batch. It knows only lengths - positive with an image,
negative without - and no rows.
"""

from __future__ import annotations

import array
import hashlib
import heapq
from collections.abc import Sequence

import torch

__all__ = [
    "GroupedBatchSampler",
    "epoch_generator",
    "fingerprint",
    "grouped_by_length",
    "grouped_by_modality",
]


class GroupedBatchSampler:
    """The batches of each epoch, `batches(epoch)`; consecutive batches go to consecutive ranks.

    Every row occurs exactly once per epoch. Only the last batch may be smaller.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        size: int,
        *,
        batches_per_step: int = 1,
        seed: int = 0,
        by_modality: bool = True,
    ) -> None:
        """Group rows by length.

        Args:
            lengths: of the rows in tokens, negative without an image.
            size: rows in a batch.
            batches_per_step: ranks times accumulation steps; the rows of a step have similar length.
            seed: of the shuffling, together with the epoch.
            by_modality: separate rows with and without images.
        """
        self.lengths, self.size, self.batches_per_step = list(lengths), size, batches_per_step
        self.seed, self.by_modality = seed, by_modality

    @property
    def identity(self) -> str:
        """A string that is equal for samplers with equal batches in every epoch."""
        kind = "modality" if self.by_modality else "length"
        rule = f"{self.size} rows, {self.batches_per_step} together, seed {self.seed}"
        return f"grouped by {kind}: {rule}, lengths {fingerprint(self.lengths)}"

    def batches(self, epoch: int) -> list[list[int]]:
        """The row numbers of each batch; every epoch has the same number of batches."""
        if not self.lengths:
            return []
        generator = epoch_generator(self.seed, epoch)
        if self.by_modality:
            order = grouped_by_modality(self.lengths, self.size, self.batches_per_step, generator)
        else:
            sizes = [abs(length) for length in self.lengths]
            order = grouped_by_length(sizes, self.size, self.batches_per_step, generator)
        return _chunks(order, self.size)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of one epoch of a run."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def fingerprint(lengths: Sequence[int]) -> str:
    """A short hash of lengths in their order."""
    return hashlib.sha256(array.array("q", lengths).tobytes()).hexdigest()[:16]


def grouped_by_length(
    lengths: Sequence[int], batch: int, world: int, generator: torch.Generator | None = None
) -> list[int]:
    """A random order in which each chunk of `world` x `batch` rows is balanced across ranks.

    A chunk holds the `batch` rows of rank 0, then of rank 1, and so on. All ranks get a similar
    number of tokens, longest row first. `generator` None is torch's global one.
    """
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for step in _chunks(drawn, batch * world):
        longest_first = sorted(step, key=lambda index: -lengths[index])
        for share in _balanced(longest_first, lengths, world):
            order += share
    return order


def grouped_by_modality(
    lengths: Sequence[int], batch: int, world: int, generator: torch.Generator | None = None
) -> list[int]:
    """Like `grouped_by_length`, with steps of rows with images (positive) or without (negative).

    Full steps come in random order; the remaining rows of both kinds come last.
    Raises ValueError for a length of 0.
    """
    if 0 in lengths:
        raise ValueError(f"row {list(lengths).index(0)} has the length 0")
    kinds = [
        [index for index, length in enumerate(lengths) if (length > 0) == has_image]
        for has_image in (True, False)
    ]
    if not all(kinds):
        return grouped_by_length(lengths, batch, world, generator)
    full: list[list[int]] = []
    rest: list[int] = []
    for kind in kinds:
        sizes = [abs(lengths[index]) for index in kind]
        order = grouped_by_length(sizes, batch, world, generator)
        steps = _chunks([kind[place] for place in order], batch * world)
        # As in the original, the last step counts as the rest even if it is full.
        rest += steps.pop()
        full += steps
    shuffled = torch.randperm(len(full), generator=generator).tolist()
    return [index for place in shuffled for index in full[place]] + sorted(rest)


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _balanced(indices: list[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Assign each row to the rank with the fewest tokens so far, the same number of rows to each.

    If the rows can't be divided evenly, they are assigned round-robin.
    """
    if len(indices) % ranks:
        return [indices[rank::ranks] for rank in range(ranks)]
    room = len(indices) // ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    for index in indices:
        tokens, rank = heapq.heappop(heap)
        shares[rank].append(index)
        if len(shares[rank]) < room:
            heapq.heappush(heap, (tokens + lengths[index], rank))
    return shares
