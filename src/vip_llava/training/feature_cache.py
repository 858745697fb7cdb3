"""A cache of a frozen tower's outputs, for training a projector.

In stage 1 nothing is drawn on images and only the projector is trained, so the tower's outputs are
the same in every epoch and every run. The cache keeps them in safetensors shards together with the
tokenized rows, so that a cached row needs neither its image nor the tower. Images that rows share
are stored once. Shards are written atomically; an interrupted build continues, and stops at a size
limit.

An image's key is a hash of its pixels as the tower gets them, and of the cache's fingerprint, which
identifies rows, processor settings and tower.

It knows samples and towers. It does not know row files or the training loop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from vip_llava.data.samples import BadRow, Sample, SampleDataset
from vip_llava.errors import CheckpointError, DataError
from vip_llava.models.spec import layer_setting
from vip_llava.training.param_groups import unwrap
from vip_llava.training.resume.checkpoint_folder import atomic_write
from vip_llava.training.resume.state_dict import safetensors_chunks, strip_wrappers
from vip_llava.training.vision import tower_features

__all__ = ["CachedDataset", "CachedSample", "FeatureCache", "FeatureCollator", "tower_fingerprint"]

# Every how many rows the cache checks that a row is the same in the next epoch.
_CHECK_EVERY = 64


@dataclass(slots=True)
class CachedSample:
    """A sample whose images are tower outputs: `features` [N, P, C], None without an image."""

    id: str
    input_ids: list[int]
    labels: list[int]
    features: Tensor | None


def tower_fingerprint(model: nn.Module) -> str:
    """A hash of everything that the projector's input depends on: tower weights and layers read."""
    inner: Any = unwrap(model)
    config = inner.config
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    digest = hashlib.sha256(repr([layer_setting(config), strategy]).encode())
    for name, weight in inner.model.vision_tower.state_dict().items():
        digest.update(f"{strip_wrappers(name)} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(_bytes(weight.detach().cpu()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    data: bytes = array.tobytes()
    return data


class FeatureCache:
    """A folder of tower outputs and the rows that they belong to.

    Args:
        folder: created if it does not exist.
        fingerprint: identifies rows, processor settings and tower (`tower_fingerprint`).
        limit_bytes: `build` stops at this size; other rows are computed as usual.
        shard_bytes: the size at which a new file is begun.

    Raises:
        CheckpointError: the folder was built with another fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        limit_bytes: int = 200 * 10**9,
        shard_bytes: int = 10**9,
    ) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.limit_bytes, self.shard_bytes = limit_bytes, shard_bytes
        self.rows: dict[int, dict[str, Any]] = {}
        self.images: dict[str, Path] = {}
        self.bytes = 0
        self._open: dict[Path, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("features-*.safetensors")):
            self._add_shard(path)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, for the copies of data-loader workers."""
        return {**self.__dict__, "_open": {}}

    def _add_shard(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                keys = list(file.keys())
        except SafetensorError as error:
            raise CheckpointError(f"{path} can't be read ({error}): remove it") from error
        if metadata.get("identity") != self.fingerprint:
            raise CheckpointError(
                f"{path} was built from other rows, other settings or another tower: "
                "remove it, or use another folder"
            )
        self.rows |= {int(key): row for key, row in json.loads(metadata["rows"]).items()}
        self.images |= dict.fromkeys(keys, path)
        self.bytes += path.stat().st_size

    def write(self, rows: dict[int, dict[str, Any]], images: dict[str, Tensor]) -> None:
        """Store rows (id, ids, labels, image keys) and new images' features [P, C] as a shard."""
        number = len(list(self.folder.glob("features-*.safetensors")))
        path = self.folder / f"features-{number:05d}.safetensors"
        metadata = {"identity": self.fingerprint, "rows": json.dumps(rows)}
        atomic_write(path, safetensors_chunks(images, metadata))
        self._add_shard(path)

    def features(self, key: str) -> Tensor:
        """The features [P, C] of an image."""
        path = self.images[key]
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        tensor: Tensor = self._open[path].get_tensor(key)
        return tensor

    def build(
        self,
        model: nn.Module,
        dataset: SampleDataset,
        *,
        batch: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Store all rows that are not stored yet; returns the number of stored rows.

        `progress(done, total)` counts the rows to store. Bad rows are skipped: the training loop
        counts them. Raises DataError for a row that changes between epochs, as drawn marks do.
        """
        todo = [number for number in range(len(dataset)) if number not in self.rows]
        rows: dict[int, dict[str, Any]] = {}
        images: dict[str, Tensor] = {}
        size = 0
        for start in range(0, len(todo), batch):
            if self.bytes + size >= self.limit_bytes:
                break
            if progress is not None:
                progress(start, len(todo))
            samples = dict(_samples(dataset, todo[start : start + batch]))
            new = self._compute(model, samples, known={*self.images, *images})
            images |= new
            size += sum(each.numel() * each.element_size() for each in new.values())
            rows |= {number: self._entry(sample) for number, sample in samples.items()}
            if size >= self.shard_bytes:
                self.write(rows, images)
                rows, images, size = {}, {}, 0
        if rows:
            self.write(rows, images)
        return len(self.rows)

    def _compute(
        self, model: nn.Module, samples: dict[int, Sample], known: set[str]
    ) -> dict[str, Tensor]:
        new = {self._key(each): each for sample in samples.values() for each in _images(sample)}
        new = {key: pixels for key, pixels in new.items() if key not in known}
        if not new:
            return {}
        with torch.no_grad():
            features = tower_features(model, torch.stack(list(new.values()))).cpu()
        return {key: each.clone() for key, each in zip(new, features, strict=True)}

    def _entry(self, sample: Sample) -> dict[str, Any]:
        return {
            "id": sample.id,
            "ids": list(sample.input_ids),
            "labels": list(sample.labels),
            "views": [self._key(pixels) for pixels in _images(sample)],
        }

    def _key(self, pixels: Tensor) -> str:
        about = f"{self.fingerprint} {pixels.dtype} {tuple(pixels.shape)}"
        return hashlib.sha256(about.encode() + _bytes(pixels)).hexdigest()


def _images(sample: Sample) -> list[Tensor]:
    return [] if sample.pixel_values is None else list(sample.pixel_values)


def _samples(dataset: SampleDataset, numbers: Sequence[int]) -> Iterator[tuple[int, Sample]]:
    """The usable rows in epoch 0, some of them compared with the same row in epoch 1."""
    for number in numbers:
        dataset.set_epoch(0)
        sample = dataset[number]
        if isinstance(sample, BadRow):
            continue
        if number % _CHECK_EVERY == 0:
            dataset.set_epoch(1)
            if not _same(sample, dataset[number]):
                raise DataError(
                    f"row {number + 1} ({sample.id!r}) changes from epoch to epoch: "
                    "data.feature_cache needs rows without drawn marks"
                )
        yield number, sample


def _same(one: Sample, other: Sample | BadRow) -> bool:
    if isinstance(other, BadRow) or list(one.input_ids) != list(other.input_ids):
        return False
    if one.pixel_values is None or other.pixel_values is None:
        return one.pixel_values is other.pixel_values
    return torch.equal(one.pixel_values, other.pixel_values)


class CachedDataset(Dataset[Any]):
    """A dataset that reads cached rows from a cache and the others from another dataset."""

    def __init__(self, dataset: SampleDataset, cache: FeatureCache) -> None:
        self.dataset, self.cache = dataset, cache

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the other dataset."""
        self.dataset.set_epoch(epoch)

    def __getitem__(self, number: int) -> CachedSample | Sample | BadRow:
        row = self.cache.rows.get(number)
        if row is None:
            return self.dataset[number]
        features = [self.cache.features(key) for key in row["views"]]
        stacked = torch.stack(features) if features else None
        return CachedSample(row["id"], list(row["ids"]), list(row["labels"]), stacked)


class FeatureCollator:
    """Another collator, for rows of `CachedDataset`: adds `features` [M, P, C] and `cached` [N].

    `cached` says which of the batch's images are in `features`; the others are in `pixel_values`.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[CachedSample | Sample | BadRow]) -> dict[str, Any]:
        """A batch."""
        plain: list[Sample | BadRow] = []
        features: list[Tensor] = []
        cached: list[bool] = []
        for row in rows:
            if isinstance(row, CachedSample):
                plain.append(Sample(row.id, row.input_ids, row.labels))
                if row.features is not None:
                    features.append(row.features)
                    cached += [True] * len(row.features)
            else:
                plain.append(row)
                cached += [False] * (0 if isinstance(row, BadRow) else len(_images(row)))
        batch: dict[str, Any] = dict(self.collator(plain))
        if features:
            batch |= {"features": torch.cat(features), "cached": torch.tensor(cached)}
        return batch
