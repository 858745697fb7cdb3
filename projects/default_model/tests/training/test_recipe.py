"""Recipes: the shipped ones load, and errors name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from default_model.training.recipe import StageRecipe, load_recipe
from vip_llava.errors import DataError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    settings = load_recipe(path)
    assert settings.steps > settings.warmup


def test_there_are_recipes() -> None:
    assert [path.stem for path in RECIPES] == [f"stage{number}" for number in range(1, 8)]


def test_overrides_replace_values_and_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 10\nlr_tower: 1.0e-4\n")
    settings = load_recipe(path, {"steps": "25", "smoothing": "0.1"})
    assert (settings.steps, settings.smoothing, settings.lr_tower) == (25, 0.1, 1e-4)


@pytest.mark.parametrize(
    ("text", "overrides", "reason"),
    [
        ("steps: 10\nstep: 3\n", {}, "step: Extra inputs"),
        ("steps: 10\n", {"lr": "1"}, "lr: Extra inputs"),
        ("warmup: 10\n", {}, "steps: Field required"),
        ("steps: many\n", {}, "steps: "),
        ("steps: 0\n", {}, "steps: "),
        ("steps: 10\n", {"smoothing": "1"}, "smoothing: "),
        ("- steps\n", {}, "keys and values"),
        ("", {}, "keys and values"),
        ("steps: [", {}, "can't be read"),
        ("steps: !!python/name:os.system\n", {}, "can't be read"),
    ],
)
def test_a_mistake_names_file_and_key(
    tmp_path: Path, text: str, overrides: dict[str, str], reason: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_recipe(path, overrides)
    assert f"recipe {path}" in str(caught.value) and reason in str(caught.value)


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml can't be read"):
        load_recipe(tmp_path / "none.yaml")


def test_settings_are_described_and_frozen() -> None:
    undescribed = [name for name, f in StageRecipe.model_fields.items() if not f.description]
    assert undescribed == []
    settings = StageRecipe(steps=3)
    with pytest.raises(ValidationError):
        settings.steps = 4  # type: ignore[misc]
