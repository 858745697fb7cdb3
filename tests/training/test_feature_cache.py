"""The feature cache: training a projector is the same with and without it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Rows, padded, trainer, vip_llava

from vip_llava.data.samples import Sample
from vip_llava.errors import CheckpointError, DataError
from vip_llava.training.feature_cache import (
    CachedDataset,
    FeatureCache,
    FeatureCollator,
    tower_fingerprint,
)
from vip_llava.training.vision import patch_image_inputs, tower_features


class FixedRows(Rows):
    """Rows that are the same in every epoch; rows 1 and 2 share an image."""

    asked = 0

    def set_epoch(self, epoch: int) -> None:
        pass

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        row = super().__getitem__(index)
        if index == 2 and isinstance(row, Sample):
            first = super().__getitem__(1)
            assert isinstance(first, Sample)
            row.pixel_values = first.pixel_values
        return row


def cache(folder: Path, fingerprint: str = "it", **options: Any) -> FeatureCache:
    return FeatureCache(folder, fingerprint, **options)


def test_images_are_stored_once_and_read_again(tmp_path: Path) -> None:
    model, rows = vip_llava(), FixedRows(9, bad=(4,))
    made = cache(tmp_path)
    assert made.build(model, rows, batch=2) == 8
    assert len(made.images) == 4  # rows 1 and 2 share one; 5, 7, 8; the others have no image
    again = cache(tmp_path)
    cached: Any = CachedDataset(rows, again)
    before = rows.asked
    for index in (0, 1, 2, 8):
        sample, usual = cached[index], Rows.__getitem__(rows, index)
        assert (sample.id, sample.input_ids, sample.labels) == (
            usual.id,
            usual.input_ids,
            usual.labels,
        )
    assert rows.asked == before  # read from the cache alone
    expected = tower_features(model, rows[8].pixel_values)
    torch.testing.assert_close(cached[8].features, expected)
    assert cached[4].reason == "spoiled"


@pytest.mark.parametrize("limit", [10**9, 20_000])
def test_training_a_projector_is_the_same_with_it(tmp_path: Path, limit: int) -> None:
    """Also if only some rows are cached, so that a batch has both kinds."""
    results = []
    for cached in (False, True):
        made = trainer(tmp_path / str(cached), parts=("projector",), save_steps=99)
        rows: Any = FixedRows(20)
        made.train_dataset = rows
        if cached:
            kept = cache(tmp_path / "features", limit_bytes=limit, shard_bytes=8_000)
            count = kept.build(made.model, rows, batch=2)
            assert (count == 20) == (limit == 10**9)
            made.train_dataset = CachedDataset(rows, kept)
            made.data_collator.collator = FeatureCollator(padded)
        made.train()
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        weights = made.model.model.multi_modal_projector.state_dict()
        results.append((losses, weights))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, rtol=1e-4, atol=1e-6)


def test_an_interrupted_build_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = vip_llava(), FixedRows(20)

    usual, renamed = Path.rename, [0]

    def rename(old: Path, new: Path) -> Path:
        renamed[0] += 1
        if renamed[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(old, new)

    options = {"shard_bytes": 8_000}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "rename", rename)
        cache(tmp_path, **options).build(model, rows, batch=2)
    made = cache(tmp_path, **options)
    already = len(made.rows)
    assert 0 < already < 20
    rows.asked = 0
    assert made.build(model, rows, batch=2) == 20
    assert rows.asked <= 20 - already + 1


def test_a_folder_with_another_fingerprint_is_refused(tmp_path: Path) -> None:
    cache(tmp_path).build(vip_llava(), FixedRows(3))
    with pytest.raises(CheckpointError, match="another tower"):
        cache(tmp_path, "other")
    (tmp_path / "features-00000.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="can't be read"):
        cache(tmp_path)


def test_rows_that_change_between_epochs_are_refused(tmp_path: Path) -> None:
    rows = Rows(3)
    rows.seed = 7
    changing = type("Changing", (Rows,), {"__getitem__": lambda self, i: Rows.__getitem__(self, 1)})
    with pytest.raises(DataError, match="changes from epoch to epoch"):
        cache(tmp_path).build(vip_llava(), changing(3))


def test_the_fingerprint_depends_on_the_towers_weights() -> None:
    model = vip_llava()
    before = tower_fingerprint(model)
    assert before == tower_fingerprint(vip_llava())
    patch_image_inputs(model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight += 1
    assert tower_fingerprint(model) == before
    with torch.no_grad():
        model.model.vision_tower.embeddings.patch_embedding.weight[0, 0, 0, 0] += 1e-3
    assert tower_fingerprint(model) != before
