"""Which rows come when: the same rows in the same steps for any number of processes.

An epoch is one list of small batches. Step s learns from the next K of them, K being processes times
accumulation, dealt out in turn: two processes without accumulation and one that accumulates twice
do the same steps. Where the last ones don't suffice for all, some get an empty batch, so no row
comes twice. Nothing here remembers anything: epoch and position are all there is to resume.

It knows indices, not what a row is; models and losses not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vip_llava.errors import DataError

__all__ = ["Batches", "Collate", "EveryRow", "RankBatches", "row_loader"]


class Batches(Protocol):
    """The order of an epoch's rows."""

    def batches(self, epoch: int) -> Sequence[Sequence[int]]:
        """All batches of an epoch, as row numbers; as many in each epoch."""
        ...


class EveryRow:
    """All rows in a new random order each epoch, `size` a batch."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self.rows, self.size, self.seed = rows, size, seed

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch; the last one may be smaller."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        return [order[start : start + self.size] for start in range(0, self.rows, self.size)]


class RankBatches(Sampler[list[tuple[int, int]]]):
    """One process' share of an epoch, each row as (epoch, number)."""

    def __init__(self, batches: Batches, rank: int, world: int) -> None:
        self.source, self.rank, self.world = batches, rank, world
        self.epoch = 0
        self._count = -(-len(batches.batches(0)) // world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        batches = self.source.batches(epoch)
        if len(batches) > self._count * self.world:
            raise DataError(
                f"epoch {epoch} has {len(batches)} batches and the first had at most "
                f"{self._count * self.world}: every epoch needs as many"
            )
        for position in range(self.rank, self._count * self.world, self.world):
            rows = batches[position] if position < len(batches) else ()
            yield [(epoch, int(row)) for row in rows]


class _Rows(Dataset[Any]):
    """A dataset asked by (epoch, number), so that workers need not be told about epochs."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, number = key
        if epoch != self._epoch and hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
        self._epoch = epoch
        return self.rows[number]


class Collate:
    """Makes a batch of rows, in the loader's worker; rows that failed travel beside it in `bad`.

    A batch of no usable row has only `bad`, `rows` and `num_items`.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        bad = [row for row in rows if not hasattr(row, "input_ids")]
        good = [row for row in rows if hasattr(row, "input_ids")]
        batch: dict[str, Any] = dict(self.collator(good)) if good else {"num_items": 0}
        return {**batch, "bad": bad, "rows": len(rows)}


def row_loader(
    dataset: Any, batches: RankBatches, collate: Collate, *, workers: int = 0, pin: bool = False
) -> DataLoader[Any]:
    """A loader whose workers touch no generator that training uses."""
    options: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
    return DataLoader(
        _Rows(dataset),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
