"""Recipes: the shipped ones have the published values, mistakes are named, batches are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vip_llava.errors import DataError
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.recipes.recipe_files import is_rows, load_recipe, load_values

RECIPES = Path(__file__).parents[2] / "recipes"
PARTIAL = {"stages", "parallel"}  # not recipes of whole runs
SHIPPED = sorted(p for p in RECIPES.glob("*/*.yaml") if p.parent.name not in PARTIAL)
MODELS = {p.parent.name for p in SHIPPED}


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_published_model_has_its_recipes() -> None:
    vip = {"stage1", "stage2", "stage2-lora", "stage2-qlora", "stage3"}
    vip |= {"task", "task-lora", "task-qlora"}
    plain = {"stage1", "stage2", "stage2-lora"}
    for model in ("vicuna-7b", "vicuna-13b", "llama-3-8b", "phi-3-mini"):
        assert {p.stem for p in (RECIPES / model).glob("*.yaml")} == vip, model
    for model in ("7b", "13b", "llama-3-8b", "phi-3-mini"):
        folder = RECIPES / f"llava-1.5-{model}"
        assert {p.stem for p in folder.glob("*.yaml")} == plain, model


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_a_shipped_recipe_has_the_published_numbers(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.about and is_rows(path)
    if path.parent.name == "tutorial":
        return
    lora = path.stem.endswith("lora")
    rates = {"stage1": 1e-3, "stage2": 2e-5, "stage3": 2e-7, "task": 2e-5}
    assert recipe.optimizer.lr == (2e-4 if lora else rates[path.stem])
    assert recipe.batch.size == (256 if path.stem == "stage1" else 128)
    assert recipe.optimizer.projector_lr == (2e-5 if lora else None)
    assert (recipe.epochs, recipe.optimizer.schedule, recipe.optimizer.warmup_ratio) == (
        1, "cosine", 0.03,
    )  # fmt: skip
    assert recipe.optimizer.weight_decay == 0 and recipe.data.max_length == 2048
    assert recipe.precision == "bf16" and "tower" not in recipe.train.parts
    whole = ("projector", "language")
    assert recipe.train.parts == (("projector",) if lora or path.stem == "stage1" else whole)
    adapter = recipe.train.adapter
    assert (adapter is not None) == lora
    if adapter is not None:
        assert (adapter.rank, adapter.alpha) == (128, 256)
        assert recipe.quantized == path.stem.endswith("qlora")
    assert recipe.model.aspect == ("square" if path.stem == "stage1" else "pad")
    assert (recipe.model.template == "plain") == (path.stem == "stage1")
    assert recipe.out == f"runs/{path.parent.name}/{path.stem}"
    for world in (1, 2, 4, 8, 16):
        rows, rounds = recipe.accumulation(world)
        assert rows * rounds * world == recipe.batch.size and rows <= recipe.batch.per_device


def test_each_stage_starts_from_the_one_before() -> None:
    for model in ("vicuna-7b", "vicuna-13b", "llama-3-8b", "phi-3-mini"):
        one, two, three = (load_recipe(RECIPES / model / f"stage{n}.yaml") for n in (1, 2, 3))
        assert one.model.projector == "new" and two.model.projector == one.out
        assert two.model.base == one.model.base and three.model.start == two.out
        assert two.model.template == three.model.template


@pytest.mark.parametrize("model", ["llava-1.5-7b", "llava-1.5-llama-3-8b"])
def test_the_baseline_reads_one_hidden_state(model: str) -> None:
    assert load_recipe(RECIPES / model / "stage1.yaml").model.features == -2


def minimal() -> str:
    return (
        "model: {tiny: {}}\ndata: {files: rows.jsonl}\ntrain: {parts: projector}\n"
        "optimizer: {lr: 1e-3}\nbatch: {size: 8, per_device: 3}\n"
    )


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_are_parsed_as_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, minimal())
    changes = {
        "optimizer.lr": "5e-4",
        "train.parts": "[projector, language]",
        "save.every": "0",
        "data.root": "$recipe/x",
        "log.to": "tensorboard",
    }
    recipe = load_recipe(path, changes)
    assert recipe.optimizer.lr == 5e-4 and recipe.train.parts == ("projector", "language")
    assert recipe.save.every == 0 and recipe.data.root == f"{tmp_path}/x"
    assert recipe.log.to == ("tensorboard",) and recipe.data.files == ("rows.jsonl",)


def test_a_recipe_inherits_from_another(tmp_path: Path) -> None:
    written(tmp_path, minimal(), "first.yaml")
    path = written(tmp_path, "like: first.yaml\noptimizer: {clip: 2}\nbatch: {size: 4}\n")
    recipe = load_recipe(path)
    assert recipe.optimizer.lr == 1e-3 and recipe.optimizer.clip == 2
    assert (recipe.batch.size, recipe.batch.per_device) == (4, 3)
    loop = written(tmp_path, "like: loop.yaml\n", "loop.yaml")
    with pytest.raises(DataError, match="more than 8 files"):
        load_recipe(loop)


def test_recipes_of_the_default_model_are_distinguished() -> None:
    folder = RECIPES.parent / "projects" / "default_model" / "recipes"
    assert not is_rows(folder / "stage1.yaml") and not is_rows(folder / "stage2.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.start": "x"}, "exactly one of start, base and tiny"),
        ({"model": "{base: x}"}, "base and projector belong together"),
        ({"model": "{base: x, projector: y, features: []}"}, "features must"),
        ({"optimizer.rate": "1"}, "optimizer.rate: no such key"),
        ({"optimizer.lr": "fast"}, "optimizer.lr"),
        ({"optimizer.lr.x": "1"}, "lr is a value, not a section"),
        ({"train.parts": "[]"}, "train.parts"),
        ({"train": "{parts: [language], adapter: {kind: lora}}"}, "not both"),
        ({"train.parts": "[projector, projector]"}, "named twice"),
        ({"train.parts": "[tower]", "data.feature_cache": "true"}, "feature_cache needs"),
        ({"model.adapter": "x"}, "model.adapter needs train.adapter"),
        ({"log.samples": "1", "parallel": "fsdp2"}, "does not work with parallel fsdp2"),
        ({"train.adapter": "{kind: qlora}", "parallel": "zero3"}, "use ddp"),
        ({"optimizer.lr": "[1"}, "--set optimizer.lr can't be parsed"),
        ({"model.tiny": "{width: 30}"}, "must be divisible by"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_recipe(written(tmp_path, minimal()), change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must contain keys"),
        ("a: [\n", "can't be parsed"),
        ("like: 3\n", "must name one file"),
    ],
)
def test_a_file_that_is_not_a_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_recipe(written(tmp_path, text))
    with pytest.raises(DataError, match=r"none\.yaml can't be read"):
        load_values(tmp_path / "none.yaml")


def test_the_global_batch_is_kept_or_refused(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, minimal()))
    assert recipe.accumulation(1) == (2, 4)
    assert recipe.accumulation(4) == (2, 1)
    with pytest.raises(ValueError, match="can't be divided among 3 devices"):
        recipe.accumulation(3)


def test_every_key_has_a_description() -> None:
    from pydantic import BaseModel

    def undescribed(model: type[BaseModel], place: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                missing += undescribed(kind, f"{place}{name}.")
            elif not field.description:
                missing.append(place + name)
        return missing

    assert undescribed(Recipe, "") == []
