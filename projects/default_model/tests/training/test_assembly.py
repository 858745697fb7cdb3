"""What a run starts from: photos without the validation split, and weights."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from default_model.scenes.mixture_config import MixtureConfig
from default_model.scenes.photos import read_regions
from default_model.training import assembly
from default_model.training.assembly import (
    PACKS,
    build,
    focal_settings,
    mixture_config,
    read_training_photos,
    trained_parameters,
)
from default_model.training.recipe import StageRecipe
from vip_llava.errors import DataError
from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.prompting.focal_views import FocalSettings


def jpeg() -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (16, 12), (10, 200, 30)).save(held, format="JPEG")
    return held.getvalue()


@pytest.fixture
def whole_folder(labelled_folder: Path, tmp_path: Path) -> Path:
    """The made photos and all three packs, with two photos each (one in the last)."""
    folder = Path(shutil.copytree(labelled_folder, tmp_path / "whole"))
    files = [jpeg(), jpeg()]
    for name in PACKS[:2]:
        (folder / name).parent.mkdir()
        np.savez(
            folder / name,
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offset=np.cumsum([0, *map(len, files)]),
            label=np.array([0, 0]),
            box=np.array([[0, 0, 16, 12]] * 2),
            filename=np.array(["a", "b"]),
            name=np.array(["bus"]),
        )
    samples = folder / PACKS[2]
    samples.mkdir()
    (samples / "a.jpg").write_bytes(jpeg())
    row = {"image": f"{PACKS[2]}/a.jpg", "wnid": "n02123045", "label": "tabby"}
    (samples / "labels.jsonl").write_text(json.dumps({**row, "width": 16, "height": 12}) + "\n")
    return folder


def test_training_excludes_the_validation_split(labelled_folder: Path) -> None:
    read = read_training_photos(labelled_folder)
    everything = [photo.id for photo in read_regions(labelled_folder)]
    assert {photo.id for photo in read.photos} == {i for i in everything if not is_validation(i)}
    assert read.left_out == 2 == sum(map(is_validation, everything))
    assert not any(is_validation(photo.id) for photo in read.photos)


def test_missing_packs_are_reported(labelled_folder: Path, whole_folder: Path) -> None:
    assert read_training_photos(labelled_folder).missing == PACKS
    read = read_training_photos(whole_folder)
    assert read.missing == () and len(read.singles) == 5
    assert len(read_training_photos(whole_folder, limit=1).singles) == 1
    (whole_folder / PACKS[0]).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"photos\.npz can't be read"):
        read_training_photos(whole_folder)


def test_batch_sizes_are_scaled() -> None:
    full, half = (mixture_config(StageRecipe(steps=1, rows_scale=s)) for s in (1.0, 0.5))
    assert half.rows == {kind: rows // 2 for kind, rows in full.rows.items()}
    assert set(mixture_config(StageRecipe(steps=1, rows_scale=1e-6)).rows.values()) == {1}
    shares = mixture_config(StageRecipe(steps=1, mosaic_share=0.5, single_share=0.25))
    assert (shares.mosaic_share, shares.single_share) == (0.5, 0.25)
    assert shares.shares == pytest.approx(MixtureConfig().shares)
    changed = StageRecipe(
        steps=1,
        shares={"one": 0.5, "four": 0.5},
        shape_weights={"arrow": 2.0},
        focal_scale=0.8,
        label_power=-0.25,
    )
    assert mixture_config(changed).shares == {"one": 0.5, "four": 0.5}
    assert mixture_config(changed).shape_weights == {"arrow": 2.0}
    assert mixture_config(changed).focal_scale == pytest.approx((0.6, 1.1))
    assert mixture_config(changed).label_power == -0.25
    assert focal_settings(changed) == FocalSettings(0.8, named=False)
    assert focal_settings(StageRecipe(steps=1)) == FocalSettings()
    assert focal_settings(StageRecipe(steps=1, told_views=True)) == FocalSettings(told=True)
    larger = StageRecipe(steps=1, image_scale=(0.6, 1.2), harsh_share=0.25)
    augment = mixture_config(larger).augment
    assert (augment.scale, augment.harsh_share) == ((0.6, 1.2), 0.25)
    assert mixture_config(StageRecipe(steps=1)).augment == MixtureConfig().augment


def test_trained_parameters_are_counted_without_weights() -> None:
    few = trained_parameters(StageRecipe(steps=1, lora_rank=8))
    many = trained_parameters(StageRecipe(steps=1, lora_rank=32))
    assert many["language model (LoRA)"] == 4 * few["language model (LoRA)"]
    assert many["tower"] == few["tower"] > 4_000_000
    # As in the shipped weights: 30 layers of 7 matrices.
    assert many["language model (LoRA)"] == 9_768_960
    tuned = trained_parameters(StageRecipe(steps=1, lora_rank=0))
    assert tuned["language model"] == 134_515_008


def test_build_assembles_a_trainer(
    monkeypatch: pytest.MonkeyPatch,
    whole_folder: Path,
    tmp_path: Path,
    lite_processor: Any,
    lite_model: Any,
) -> None:
    """With the tiny model in place of the default one."""
    loaded = {}
    published = {"_conv_stem.weight": torch.zeros(1)}
    torch.save(published, tmp_path / "tower.pth")
    monkeypatch.setattr(assembly, "ensure_language_model", lambda progress=None: tmp_path)
    monkeypatch.setattr(assembly, "new_default", lambda folder: lite_model())
    monkeypatch.setattr(assembly, "default_processor", lambda *_: lite_processor)
    monkeypatch.setattr(assembly, "load_published", lambda _, state: loaded.update(state))
    settings = StageRecipe(steps=1, workers=0, lora_rank=2, rows_scale=0.01)
    trainer = build(settings, whole_folder, tmp_path / "tower.pth", "cpu", compiled=False)
    assert loaded.keys() == published.keys()
    assert len(trainer.mix.source.photos) == 2 and len(trainer.mix.source.singles) == 5
    assert len(trainer.mix.source.decoded) == 2  # decoded before the workers are forked
    again = build(settings, whole_folder, tmp_path / "tower.pth", "cpu", compiled=False)
    for one, other in zip(trainer.weights, again.weights, strict=True):
        assert torch.equal(one, other)  # every run starts with the same weights
    other = build(
        settings.model_copy(update={"seed": 1}),
        read_training_photos(whole_folder),
        tmp_path / "tower.pth",
        "cpu",
        compiled=False,
    )
    assert not torch.equal(trainer.classifier.weight, other.classifier.weight)


@pytest.mark.default_model
@pytest.mark.slow
def test_the_known_shape_is_that_of_the_language_model() -> None:
    from transformers import LlamaConfig

    from vip_llava.models.default.language_model import ensure_language_model

    config = LlamaConfig.from_pretrained(ensure_language_model())
    known = assembly._LANGUAGE_MODEL
    assert {name: getattr(config, name) for name in known} == known
