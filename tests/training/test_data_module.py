"""Stage 1 with cached image features: the same training without the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vip_llava.errors import CheckpointError, DataError
from vip_llava.training.metrics import read_metrics
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.recipes.recipe_files import load_recipe
from vip_llava.training.run import run

TUTORIAL = Path(__file__).parents[2] / "recipes" / "tutorial" / "tiny.yaml"
SMALL: dict[str, Any] = {
    "model.tiny.width": 32,
    "model.tiny.image": 56,
    "model.tiny.vocabulary": 320,
    "log.every": 1,
    "log.samples": 0,
    "save.every": 0,
    "steps": 4,
    "train.parts": "[projector]",
}


def recipe(**changes: Any) -> Recipe:
    return load_recipe(TUTORIAL, {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}})


def losses(out: Path) -> list[float]:
    return [m["loss"] for m in read_metrics(out / "training" / "metrics.jsonl") if "loss" in m]


def test_cached_features_train_the_same_projector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe(), tmp_path / "usual")
    stages: list[tuple[str, int, int]] = []
    calls: list[int] = []
    from transformers import CLIPVisionModel

    forward = CLIPVisionModel.forward
    monkeypatch.setattr(
        CLIPVisionModel, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    run(
        recipe(data__feature_cache=True),
        tmp_path / "cached",
        progress=lambda *each: stages.append(each),
    )
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "usual"), abs=1e-5)
    assert any("caching image features" in stage for stage, *_ in stages)
    shards = list((tmp_path / "cached" / "training" / "features").glob("*.safetensors"))
    assert shards
    # The tower runs for the cache and never in a step.
    from safetensors import safe_open

    with safe_open(shards[0], "pt") as file:
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
    assert len(calls) <= 4


def test_a_cache_belongs_to_its_rows(tmp_path: Path) -> None:
    made = recipe(data__feature_cache=True, steps=1)
    run(made, tmp_path / "one")
    features = tmp_path / "one" / "training" / "features"
    again = tmp_path / "two" / "training"
    again.mkdir(parents=True)
    features.rename(again / "features")
    run(made, tmp_path / "two")  # reuses the cache
    third = tmp_path / "three" / "training"
    third.mkdir(parents=True)
    (again / "features").rename(third / "features")
    with pytest.raises(CheckpointError, match="other rows, other settings or another tower"):
        run(recipe(data__feature_cache=True, steps=1, data__max_length=150), tmp_path / "three")


def test_settings_that_exclude_the_feature_cache() -> None:
    for changes in ({"train__parts": "[projector, language]"}, {"parallel": "fsdp2"}):
        with pytest.raises(DataError, match="feature_cache"):
            recipe(data__feature_cache=True, **changes)
