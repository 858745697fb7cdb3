"""The order of rows and the data loader: the same steps for any number of processes.

An epoch is one list of micro-batches. Optimizer step s consumes the next K of them, where K is
processes times accumulation steps, dealt to the ranks in turn: two processes without accumulation
and one process that accumulates twice make the same steps. Where the list is not a multiple of the
number of processes, some ranks get an empty batch, so no row is repeated. The order is a pure
function of epoch and position, which is all that resuming needs.

It knows indices. It does not know what a row is, models or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vip_llava.errors import DataError

__all__ = [
    "CountingCollator",
    "EpochBatches",
    "RankBatchSampler",
    "ShuffledBatches",
    "build_dataloader",
]


class EpochBatches(Protocol):
    """The micro-batches of each epoch."""

    def batches(self, epoch: int) -> Sequence[Sequence[int]]:
        """All batches of an epoch as row numbers; every epoch has the same number of batches."""
        ...


class ShuffledBatches:
    """All rows in a new random order each epoch, `size` rows in a batch."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self.rows, self.size, self.seed = rows, size, seed

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch; the last one may be smaller."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        return [order[start : start + self.size] for start in range(0, self.rows, self.size)]


class RankBatchSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one rank in an epoch; each row is an (epoch, row number) pair."""

    def __init__(self, source: EpochBatches, rank: int, world_size: int) -> None:
        self.source, self.rank, self.world_size = source, rank, world_size
        self.epoch = 0
        self._count = -(-len(source.batches(0)) // world_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, total = self.epoch, self._count * self.world_size
        batches = self.source.batches(epoch)
        if len(batches) > total:
            raise DataError(
                f"epoch {epoch} has {len(batches)} batches and epoch 0 had at most {total}: "
                "every epoch must have the same number of batches"
            )
        for position in range(self.rank, total, self.world_size):
            rows = batches[position] if position < len(batches) else ()
            yield [(epoch, int(row)) for row in rows]


class _EpochDataset(Dataset[Any]):
    """A dataset indexed by (epoch, row number), so that workers learn the epoch from the index."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, number = key
        if epoch != self._epoch:
            self.rows.set_epoch(epoch)
        self._epoch = epoch
        return self.rows[number]


class CountingCollator:
    """Another collator, whose batches also say how many `rows` and `tokens` went in."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        tokens = sum(len(getattr(row, "input_ids", ())) for row in rows)
        return {**self.collator(rows), "rows": len(rows), "tokens": tokens}


def build_dataloader(
    dataset: Any, sampler: RankBatchSampler, collator: Any, *, workers: int = 0, pin: bool = False
) -> DataLoader[Any]:
    """A data loader whose workers do not draw from any generator that training uses."""
    options: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
    return DataLoader(
        _EpochDataset(dataset),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
