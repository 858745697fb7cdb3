"""From a recipe's row files to the inputs of the training loop: dataset, order of rows, collator.

Everything is assembled from `data`. It does not know a model, except that the feature cache runs
its tower.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import ConcatDataset

from vip_llava.data.batch_sampler import GroupedBatchSampler
from vip_llava.data.collators import PackedCollator, PaddedCollator
from vip_llava.data.fields import DataRow
from vip_llava.data.lengths import estimate_lengths
from vip_llava.data.packing import PackedBatchSampler
from vip_llava.data.reading import RowFile
from vip_llava.data.samples import SampleDataset
from vip_llava.errors import DataError
from vip_llava.models.default.fetch import sha256_of
from vip_llava.prompting.processor import Processor
from vip_llava.training.dataloader import EpochBatches, ShuffledBatches
from vip_llava.training.feature_cache import (
    CachedDataset,
    FeatureCache,
    FeatureCollator,
    tower_fingerprint,
)
from vip_llava.training.recipes.recipe import Recipe

__all__ = [
    "ConcatRows",
    "DataModule",
    "build_data_module",
    "open_rows",
    "row_texts",
    "with_feature_cache",
]


class ConcatRows(ConcatDataset[DataRow]):
    """The rows of several files in sequence, with `raw` and `where` as in a `RowFile`."""

    def __init__(self, files: Sequence[RowFile]) -> None:
        tables: Any = files
        super().__init__(tables)
        self.files = list(files)

    def raw(self, index: int) -> dict[str, Any]:
        """The unchecked JSON object of a row."""
        file, number = self._locate(index)
        return file.raw(number)

    def where(self, index: int) -> str:
        """A row's name in messages: its file and its number in it."""
        file, number = self._locate(index)
        return file.where(number)

    def _locate(self, index: int) -> tuple[RowFile, int]:
        number = bisect.bisect_right(self.cumulative_sizes, index)
        return self.files[number], index - (self.cumulative_sizes[number - 1] if number else 0)


def open_rows(recipe: Recipe) -> ConcatRows:
    """The rows of the recipe's files. Raises DataError for a missing or broken file."""
    root = Path(recipe.data.root).expanduser()
    files = []
    for name in recipe.data.files:
        path = root / name
        if not path.exists():
            raise DataError(
                f"{path} does not exist: data.files names {name!r} in data.root {str(root)!r}; "
                "change the folder with --data FOLDER, or the recipe"
            )
        files.append(RowFile.open(path))
    rows = ConcatRows(files)
    if not len(rows):
        raise DataError(f"no rows in {', '.join(recipe.data.files)}")
    return rows


def row_texts(rows: ConcatRows, limit: int = 10_000) -> Iterator[str]:
    """The texts of the first rows, for a tokenizer; unreadable rows are skipped."""
    for index in range(min(len(rows), limit)):
        try:
            row = rows[index]
        except DataError:
            continue
        yield from (turn.text for turn in getattr(row, "turns", ()))


@dataclass(slots=True)
class DataModule:
    """What the training loop reads.

    Args:
        accumulation: micro-batches of each device per optimizer step.
        rows_per_step: rows of a step over all devices; an average for packed rows.
    """

    dataset: SampleDataset | CachedDataset
    collator: PaddedCollator | PackedCollator | FeatureCollator
    batches: EpochBatches
    accumulation: int
    rows_per_step: float


def build_data_module(
    recipe: Recipe, rows: ConcatRows, processor: Processor, world_size: int
) -> DataModule:
    """Dataset, order and collator for `world_size` devices; the global batch is `batch.size` rows.

    Packed sequences hold different numbers of rows: there the average is kept as near as possible.

    Raises:
        DataError: the global batch can't be divided among the devices.
    """
    per_device, accumulation = recipe.accumulation(world_size)
    data = recipe.data
    images = Path(data.root).expanduser() / data.images
    sequence: Any = rows  # typed as a torch Dataset, with the methods of a Sequence
    dataset = SampleDataset(
        sequence, images, processor, seed=recipe.seed, max_length=data.max_length
    )
    if data.packing:
        sizes = [min(abs(length), data.max_length) for length in estimate_lengths(dataset)]
        capacity = _pack_capacity(recipe, sum(sizes) / len(sizes), world_size)
        packed = PackedBatchSampler(sizes, capacity, seed=recipe.seed)
        per_pack = len(rows) / len(packed.batches(0))
        accumulation = max(round(recipe.batch.size / (world_size * per_pack)), 1)
        rows_per_step = per_pack * accumulation * world_size
        packer = PackedCollator(processor.pad_id, capacity)
        return DataModule(dataset, packer, packed, accumulation, rows_per_step)
    batches: EpochBatches = ShuffledBatches(len(rows), per_device, recipe.seed)
    if data.grouped:
        per_step = world_size * accumulation
        batches = GroupedBatchSampler(
            estimate_lengths(dataset), per_device, batches_per_step=per_step, seed=recipe.seed
        )
    collator = PaddedCollator(processor.pad_id)
    return DataModule(dataset, collator, batches, accumulation, float(recipe.batch.size))


def _pack_capacity(recipe: Recipe, mean: float, world_size: int) -> int:
    """Tokens of a packed sequence: as many as fit a device, at most its share of a step."""
    if recipe.data.packed_tokens is not None:
        return recipe.data.packed_tokens
    fits = recipe.data.max_length * recipe.batch.per_device
    share = round(mean * recipe.batch.size / world_size)
    return max(min(fits, share), recipe.data.max_length)


def with_feature_cache(
    module: DataModule,
    recipe: Recipe,
    model: nn.Module,
    processor: Processor,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> DataModule:
    """The data module with the frozen tower's outputs cached in a folder.

    Another run with the same rows, settings and tower reuses the folder.

    Raises:
        DataError: rows whose marks are drawn at random. CheckpointError: a folder of other rows,
            settings or another tower.
    """
    assert isinstance(module.dataset, SampleDataset)
    digest = hashlib.sha256(json.dumps(processor.to_config(), sort_keys=True).encode())
    digest.update(f"{recipe.data.max_length} {tower_fingerprint(model)}".encode())
    for name in recipe.data.files:
        path = Path(recipe.data.root).expanduser() / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(sha256_of(file).encode())
    cache = FeatureCache(folder, digest.hexdigest())
    cache.build(model, module.dataset, progress=progress)
    return replace(
        module,
        dataset=CachedDataset(module.dataset, cache),
        collator=FeatureCollator(module.collator),
    )
