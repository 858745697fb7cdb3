"""From a recipe's row files to what the training loop takes: data set, order of batches, collator.

Everything here is put together from `data`; a model is met only where a tower's outputs are stored.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from torch import nn

from vip_llava.data.batch_sampler import GroupedBatches
from vip_llava.data.batches import PackedCollator, PaddedCollator
from vip_llava.data.fields import Row
from vip_llava.data.packing import PackedBatches
from vip_llava.data.reading import RowFile
from vip_llava.data.samples import SampleDataset, lengths
from vip_llava.errors import DataError
from vip_llava.models.default.fetch import sha256_of
from vip_llava.prompting.processor import Processor
from vip_llava.training.feature_cache import (
    CachedRows,
    FeatureCollator,
    FeatureStore,
    tower_identity,
)
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.dataloader import Batches, EveryRow

__all__ = ["Feed", "Rows", "make_feed", "open_rows", "texts", "with_features"]


class Rows(Sequence[Row]):
    """The rows of several files, one file after the other; as a `RowFile` of them all."""

    def __init__(self, files: Sequence[RowFile]) -> None:
        self.files = list(files)
        self._ends = list(accumulate(len(file) for file in self.files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        file, place = self._place(index)
        return file[place]

    def raw(self, index: int) -> dict[str, Any]:
        """The row's object as it is in its file, unchecked."""
        file, place = self._place(index)
        return file.raw(place)

    def where(self, index: int) -> str:
        """How messages name a row: its file and its number there."""
        file, place = self._place(index)
        return file.where(place)

    def _place(self, index: int) -> tuple[RowFile, int]:
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} rows and no row {index}")
        number = bisect.bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)


def open_rows(recipe: Recipe) -> Rows:
    """The rows of the recipe's files. Raises DataError for a file that is absent or broken."""
    root = Path(recipe.data.root).expanduser()
    files = []
    for name in recipe.data.files:
        path = root / name
        if not path.exists():
            raise DataError(
                f"{path} is not there: data.files {name!r} is looked for in data.root {str(root)!r}; "
                "change it with --data FOLDER or in the recipe"
            )
        files.append(RowFile.open(path))
    rows = Rows(files)
    if not len(rows):
        raise DataError(f"no rows in {', '.join(recipe.data.files)}")
    return rows


def texts(rows: Rows, most: int = 10_000) -> Iterator[str]:
    """What the first rows say, for a tokenizer; rows that can't be read are left out here."""
    for index in range(min(len(rows), most)):
        try:
            row = rows[index]
        except DataError:
            continue
        yield from (turn.text for turn in getattr(row, "turns", ()))


@dataclass(slots=True)
class Feed:
    """What the training loop reads.

    Args:
        rounds: batches that each device learns from before a step.
        rows_a_step: rows of a step over all devices; an average where rows are packed.
    """

    dataset: SampleDataset | CachedRows
    collator: PaddedCollator | PackedCollator | FeatureCollator
    batches: Batches
    rounds: int
    rows_a_step: float


def with_features(
    feed: Feed,
    recipe: Recipe,
    model: nn.Module,
    processor: Processor,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Feed:
    """The feed with what the frozen tower makes of each image stored in a folder.

    The folder is made once and kept; another run with the same rows, settings and tower finds it
    done. Raises DataError for rows whose marks are drawn by lot, CheckpointError for a folder that
    was made of something else.
    """
    digest = hashlib.sha256(json.dumps(processor.to_config(), sort_keys=True).encode())
    digest.update(f"{recipe.data.max_length} {tower_identity(model)}".encode())
    for name in recipe.data.files:
        path = Path(recipe.data.root).expanduser() / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(sha256_of(file).encode())
    store = FeatureStore(folder, digest.hexdigest())
    store.build(model, feed.dataset, progress=progress)
    return replace(
        feed,
        dataset=CachedRows(feed.dataset, store),
        collator=FeatureCollator(feed.collator),
    )


def make_feed(recipe: Recipe, rows: Rows, processor: Processor, world: int) -> Feed:
    """Data set, order and collator for `world` devices, so that `batch.size` is kept.

    Packed sequences hold different numbers of rows; there the average is kept as near as it goes.

    Raises:
        DataError: the batch can't be divided among the devices.
    """
    try:
        at_once, rounds = recipe.accumulation(world)
    except ValueError as error:
        raise DataError(str(error)) from None
    data = recipe.data
    images = Path(data.root).expanduser() / data.images
    dataset = SampleDataset(rows, images, processor, seed=recipe.seed, max_length=data.max_length)
    if data.packing:
        sizes = [min(abs(length), data.max_length) for length in lengths(dataset)]
        room = _room(recipe, sum(sizes) / len(sizes), world)
        packed = PackedBatches(sizes, room, seed=recipe.seed)
        in_a_pack = len(rows) / len(packed.batches(0))
        rounds = max(round(recipe.batch.size / (world * in_a_pack)), 1)
        collator: PaddedCollator | PackedCollator = PackedCollator(processor.pad_id, room)
        return Feed(dataset, collator, packed, rounds, in_a_pack * rounds * world)
    batches: Batches = EveryRow(len(rows), at_once, recipe.seed)
    if data.grouped:
        together = world * rounds
        batches = GroupedBatches(lengths(dataset), at_once, together=together, seed=recipe.seed)
    collator = PaddedCollator(processor.pad_id)
    return Feed(dataset, collator, batches, rounds, float(recipe.batch.size))


def _room(recipe: Recipe, mean: float, world: int) -> int:
    """Tokens of a packed sequence: what fits a device, and no more than its share of a step."""
    if recipe.data.packed_tokens is not None:
        return recipe.data.packed_tokens
    most = recipe.data.max_length * recipe.batch.per_device
    share = round(mean * recipe.batch.size / world)
    return max(min(most, share), recipe.data.max_length)
