"""What a frozen tower makes of each image, computed once and kept: for training a projector.

In stage 1 nothing is drawn and nothing but the projector learns, so the tower's outputs are the same
in every epoch and every run. They are kept in safetensors shards, whole samples with them, so that
a cached row needs neither its image nor the tower. An image of many rows is kept once. Shards
appear whole or not at all; building goes on where it was cut off, and stops at a size.

A view's key is a hash of its pixels as the tower gets them (so of image and geometry) and of the
tower's identity; the folder is bound to rows, settings and tower by a fingerprint.

It knows samples and towers, neither files of rows nor the training loop.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from vip_llava.data.samples import Sample
from vip_llava.errors import CheckpointError, DataError
from vip_llava.training.param_groups import bare, feature_layers
from vip_llava.training.resume.checkpoint_folder import Disk
from vip_llava.training.resume.state_dict import as_safetensors, plain_name
from vip_llava.training.vision import tower_features

__all__ = ["CachedRows", "FeatureCollator", "FeatureStore", "tower_identity"]

_CHECKED = 64


@dataclass(slots=True)
class CachedSample:
    """A sample whose images are the projector's input: `features` [N, P, C]."""

    id: str
    input_ids: list[int]
    labels: list[int]
    features: Tensor | None
    pixel_values: Tensor | None = None

    @property
    def text_only(self) -> bool:
        """Whether there is no image."""
        return self.features is None

    @property
    def length(self) -> int:
        """Tokens, each view's placeholders included."""
        return len(self.input_ids)


def tower_identity(model: nn.Module) -> str:
    """A hash of all that the projector's input depends on: every weight of the tower, and layers."""
    inner: Any = bare(model)
    config = inner.config
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    digest = hashlib.sha256(repr([feature_layers(config), strategy]).encode())
    for name, weight in inner.model.vision_tower.state_dict().items():
        digest.update(f"{plain_name(name)} {weight.dtype} {tuple(weight.shape)}".encode())
        flat: Any = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(flat)
    return digest.hexdigest()


class FeatureStore:
    """A folder of features and the rows that they belong to.

    Args:
        folder: is made if it isn't there.
        identity: hash or text of rows, settings of the processor, and tower (`tower_identity`).
        limit_bytes: building stops when so much is stored; the rest is computed as usual.
        shard_bytes: a new file is begun after so much.

    Raises:
        CheckpointError: the folder was made for something else.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        *,
        limit_bytes: int = 200 * 10**9,
        shard_bytes: int = 10**9,
        disk: Disk | None = None,
    ) -> None:
        self.folder, self.identity = folder, identity
        self.limit_bytes, self.shard_bytes = limit_bytes, shard_bytes
        self.rows: dict[int, tuple[Path, dict[str, Any]]] = {}
        self.views: dict[str, Path] = {}
        self.bytes = 0
        self._disk = disk or Disk()
        self._open: dict[Path, Any] = {}
        self._disk.make_folder(folder)
        for path in sorted(folder.glob("features-*.safetensors")):
            self._take_in(path)

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind when a worker gets a copy."""
        return {**self.__dict__, "_open": {}}

    def _take_in(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                views = list(file.keys())
        except SafetensorError as error:
            raise CheckpointError(f"{path} can't be read ({error}): remove it") from error
        if about.get("identity") != self.identity:
            raise CheckpointError(
                f"{path} was made of other rows, other settings or another tower: "
                "give another folder, or remove it"
            )
        self.rows |= {int(key): (path, row) for key, row in json.loads(about["rows"]).items()}
        self.views |= dict.fromkeys(views, path)
        self.bytes += path.stat().st_size

    def write(self, rows: dict[int, dict[str, Any]], views: dict[str, Tensor]) -> None:
        """Keep rows (id, ids, labels, keys of views) and new views [P, C] as one more shard."""
        number = len(list(self.folder.glob("features-*.safetensors")))
        path = self.folder / f"features-{number:05d}.safetensors"
        unfinished = path.with_suffix(".unfinished")
        about = {"identity": self.identity, "rows": json.dumps(rows)}
        file = self._disk.create(unfinished)
        try:
            for piece in as_safetensors(views, about):
                view = memoryview(piece).cast("B")
                while len(view):
                    view = view[self._disk.write(file, view) :]
            self._disk.sync_file(file)
        finally:
            os.close(file)
        self._disk.rename(unfinished, path)
        self._disk.sync_folder(self.folder)
        self._take_in(path)

    def view(self, key: str) -> Tensor:
        """The features [P, C] of a view."""
        path = self.views[key]
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        tensor: Tensor = self._open[path].get_tensor(key)
        return tensor

    def build(
        self,
        model: nn.Module,
        dataset: Any,
        *,
        batch: int = 32,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Store the rows that aren't yet; returns how many are stored now.

        `numbers` are the rows to look at (all); `progress(done, total)` counts those to do. Rows that can't be used are left out: the training
        loop meets and counts them.
        Raises DataError where a row is another one in another epoch, as drawn marks make it.
        """
        wanted = range(len(dataset)) if numbers is None else numbers
        todo = [number for number in wanted if number not in self.rows]
        rows: dict[int, dict[str, Any]] = {}
        views: dict[str, Tensor] = {}
        size = 0
        for start in range(0, len(todo), batch):
            if self.bytes + size >= self.limit_bytes:
                break
            if progress is not None:
                progress(start, len(todo))
            some = {number: _same_again(dataset, number) for number in todo[start : start + batch]}
            made = self._made(model, some, known={*self.views, *views})
            views |= made
            size += sum(each.numel() * each.element_size() for each in made.values())
            rows |= dict(self._entries(some))
            if size >= self.shard_bytes:
                self.write(rows, views)
                rows, views, size = {}, {}, 0
        if rows:
            self.write(rows, views)
        return len(self.rows)

    def _made(self, model: nn.Module, some: dict[int, Any], known: set[str]) -> dict[str, Tensor]:
        new: dict[str, Tensor] = {}
        for sample in some.values():
            for pixels in _views(sample):
                key = self._key(pixels)
                if key not in known:
                    new.setdefault(key, pixels)
        if not new:
            return {}
        with torch.no_grad():
            features = tower_features(model, torch.stack(list(new.values()))).cpu()
        return {key: each.clone() for key, each in zip(new, features, strict=True)}

    def _entries(self, some: dict[int, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, sample in some.items():
            if hasattr(sample, "input_ids"):
                yield (
                    number,
                    {
                        "id": sample.id,
                        "ids": list(sample.input_ids),
                        "labels": list(sample.labels),
                        "views": [self._key(pixels) for pixels in _views(sample)],
                    },
                )

    def _key(self, pixels: Tensor) -> str:
        about = f"{self.identity} {pixels.dtype} {tuple(pixels.shape)}"
        array: Any = pixels.contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(about.encode() + array.tobytes()).hexdigest()


def _views(sample: Any) -> list[Tensor]:
    pixels = getattr(sample, "pixel_values", None)
    return [] if pixels is None else list(pixels)


def _same_again(dataset: Any, number: int) -> Any:
    """A row of epoch 0; of some, also whether epoch 1 has the same."""
    sample = _of_epoch(dataset, 0, number)
    if number % _CHECKED == 0 and hasattr(sample, "input_ids"):
        again = _of_epoch(dataset, 1, number)
        one, other = sample.pixel_values, again.pixel_values
        same = one is other or (one is not None and other is not None and torch.equal(one, other))
        if not same or list(sample.input_ids) != list(again.input_ids):
            raise DataError(
                f"row {number + 1} ({sample.id!r}) changes from epoch to epoch: features can only "
                "be kept of rows without drawn marks"
            )
    return sample


def _of_epoch(dataset: Any, epoch: int, number: int) -> Any:
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    return dataset[number]


class CachedRows(Dataset[Any]):
    """A dataset that takes what a store has from there, and the rest from the usual one."""

    def __init__(self, dataset: Any, store: FeatureStore) -> None:
        self.dataset, self.store = dataset, store

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Goes on to the usual dataset."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, number: int) -> Any:
        found = self.store.rows.get(number)
        if found is None:
            return self.dataset[number]
        _, row = found
        views = [self.store.view(key) for key in row["views"]]
        features = torch.stack(views) if views else None
        return CachedSample(row["id"], list(row["ids"]), list(row["labels"]), features)


class FeatureCollator:
    """Another collator for samples of `CachedRows`: adds `features` [M, P, C] and `cached` [N].

    `cached` says which of the batch's views are in `features`; the others are in `pixel_values`.
    """

    def __init__(self, collator: Any, sample: type[Any] = Sample) -> None:
        """`sample`: the class of samples that `collator` takes, called with id, ids, labels, pixels."""
        self.collator, self.sample = collator, sample

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """A batch."""
        plain, features, cached = [], [], []
        for row in rows:
            if isinstance(row, CachedSample):
                plain.append(self.sample(row.id, row.input_ids, row.labels, None))
                if row.features is not None:
                    features.append(row.features)
                    cached += [True] * len(row.features)
            else:
                plain.append(row)
                cached += [False] * len(_views(row))
        batch: dict[str, Any] = dict(self.collator(plain))
        if features:
            batch |= {"features": torch.cat(features), "cached": torch.tensor(cached)}
        return batch
