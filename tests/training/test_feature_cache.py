"""The tower's outputs kept: training a projector is the same with them and without."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Row, Rows, padded, trainer, vip_llava

from vip_llava.errors import CheckpointError, DataError
from vip_llava.training.feature_cache import (
    CachedRows,
    FeatureCollator,
    FeatureStore,
    tower_identity,
)
from vip_llava.training.resume.checkpoint_folder import Disk
from vip_llava.training.vision import read_views, tower_features


class Still(Rows):
    """Rows that are the same in every epoch; the first two share an image."""

    asked = 0

    def set_epoch(self, epoch: int) -> None:
        pass

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        row = super().__getitem__(index)
        if index == 2 and isinstance(row, Row):
            first = super().__getitem__(1)
            assert isinstance(first, Row)
            row.pixel_values = first.pixel_values
        return row


def store(folder: Path, identity: str = "it", **options: Any) -> FeatureStore:
    return FeatureStore(folder, identity, **options)


def test_kept_once_and_read_again(tmp_path: Path) -> None:
    model, rows = vip_llava(), Still(9, bad=(4,))
    made = store(tmp_path)
    assert made.build(model, rows, batch=2) == 8
    assert len(made.views) == 4  # rows 1 and 2 share one; 5, 7, 8; the others have no image
    again = store(tmp_path)
    cached = CachedRows(rows, again)
    before = rows.asked
    for index in (0, 1, 2, 8):
        sample, usual = cached[index], Rows.__getitem__(rows, index)
        assert (sample.id, sample.input_ids, sample.labels) == (
            usual.id,
            usual.input_ids,
            usual.labels,
        )
    assert rows.asked == before  # neither image nor tower was needed
    expected = tower_features(model, rows[8].pixel_values)
    torch.testing.assert_close(cached[8].features, expected)
    assert cached[4].reason == "spoiled"


@pytest.mark.parametrize("limit", [10**9, 20_000])
def test_training_a_projector_is_the_same_with_it(tmp_path: Path, limit: int) -> None:
    """All rows kept, and only some of them: then a batch has both kinds."""
    results = []
    for cached in (False, True):
        made = trainer(tmp_path / str(cached), parts=("projector",), save_steps=99)
        rows: Any = Still(20)
        made.train_dataset = rows
        if cached:
            kept = store(tmp_path / "features", limit_bytes=limit, shard_bytes=8_000)
            count = kept.build(made.model, rows, batch=2)
            assert (count == 20) == (limit == 10**9)
            made.train_dataset = CachedRows(rows, kept)
            made._collate.collator = FeatureCollator(padded, Row)
        made.train()
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        weights = made.model.model.multi_modal_projector.state_dict()
        results.append((losses, weights))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, rtol=1e-4, atol=1e-6)


def test_building_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    model, rows = vip_llava(), Still(20)

    class Full(Disk):
        renamed = 0

        def rename(self, old: Path, new: Path) -> None:
            self.renamed += 1
            if self.renamed == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().rename(old, new)

    options = {"shard_bytes": 8_000}
    with pytest.raises(OSError, match="No space left"):
        store(tmp_path, disk=Full(), **options).build(model, rows, batch=2)
    made = store(tmp_path, **options)
    already = len(made.rows)
    assert 0 < already < 20
    rows.asked = 0
    assert made.build(model, rows, batch=2) == 20
    assert rows.asked <= 20 - already + 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    store(tmp_path).build(vip_llava(), Still(3))
    with pytest.raises(CheckpointError, match="another tower"):
        store(tmp_path, "other")
    (tmp_path / "features-00000.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="can't be read"):
        store(tmp_path)


def test_rows_that_change_are_refused(tmp_path: Path) -> None:
    rows = Rows(3)
    rows.seed = 7
    changing = type("Changing", (Rows,), {"__getitem__": lambda self, i: Rows.__getitem__(self, 1)})
    with pytest.raises(DataError, match="changes from epoch to epoch"):
        store(tmp_path).build(vip_llava(), changing(3))


def test_a_tower_is_known_by_its_weights() -> None:
    model = vip_llava()
    before = tower_identity(model)
    assert before == tower_identity(vip_llava())
    read_views(model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight += 1
    assert tower_identity(model) == before
    with torch.no_grad():
        model.model.vision_tower.embeddings.patch_embedding.weight[0, 0, 0, 0] += 1e-3
    assert tower_identity(model) != before
