"""Plans of all shipped recipes, and numbers that can be checked by hand."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import CheckpointError, DataError
from vip_llava.training.recipes.plan import build_meta_model, count_rows, count_steps, make_plan
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.recipes.recipe_files import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(p for p in RECIPES.glob("*/*.yaml") if p.parent.name not in ("stages", "parallel"))
TOTAL = "parameters"
MEMORY = "memory per device (GB, estimated)"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_has_a_plan(path: Path) -> None:
    plan = make_plan(load_recipe(path), 8 if path.parent.name != "tutorial" else 1)
    recipe = plan["recipe"]
    assert set(plan["trainable"]) == {
        *recipe["train"]["parts"],
        *(["adapter"] if recipe["train"]["adapter"] else []),
    }
    assert all(value > 0 for value in plan["trainable"].values())
    assert plan["batch"]["rows per step"] == recipe["batch"]["size"]
    taken = plan[MEMORY]
    assert taken["total"] == pytest.approx(
        sum(value for name, value in taken.items() if name != "total"), abs=0.03
    )
    if path.parent.name != "tutorial":
        assert 0.5 < taken["total"] < 140, "fits on eight large devices"


def test_the_published_sizes() -> None:
    """7B: Vicuna has 6,738,415,616; CLIP loses its last layer and the norm behind it."""
    plan = make_plan(load_recipe(RECIPES / "vicuna-7b" / "stage2.yaml"), 8)
    projector = 2 * 5120 + (5120 * 4096 + 4096) + (4096 * 4096 + 4096)
    assert plan["trainable"] == {"projector": projector, "language": 6_738_415_616}
    clip = 303_507_456 - 12_596_224
    assert plan[TOTAL] == 6_738_415_616 + projector + clip
    assert plan["steps"] == -(-1_185_000 // 128)
    assert plan["batch"] == {
        "rows per step": 128, "rows per device": 16, "accumulation steps": 1,
    }  # fmt: skip


def test_lora_and_bits() -> None:
    lora = make_plan(load_recipe(RECIPES / "vicuna-7b" / "task-lora.yaml"))
    qlora = make_plan(load_recipe(RECIPES / "vicuna-7b" / "task-qlora.yaml"))
    layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert lora["trainable"]["adapter"] == 128 * 32 * layer
    assert qlora["trainable"] == lora["trainable"]
    saved = lora[MEMORY]["weights"] - qlora[MEMORY]["weights"]
    small = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert saved == pytest.approx(small * (2 - 5 / 8) / 1e9, abs=0.02)


def test_the_estimate_is_near_a_measurement() -> None:
    """A full fine-tune of 7B with bf16 weights took 58 GB at 16 rows of 832 tokens."""
    recipe = load_recipe(RECIPES / "vicuna-7b" / "stage2.yaml", {"train.weights": "bfloat16"})
    assert make_plan(recipe, 1)[MEMORY]["total"] == pytest.approx(62, abs=4)


def values(**changes: Any) -> Recipe:
    given = {
        "model": {"tiny": {}},
        "data": {"files": ["a.jsonl"]},
        "train": {"parts": ["projector"]},
        "optimizer": {"lr": 1e-3},
        "batch": {"size": 8, "per_device": 2},
        "parallel": "none",
    }
    return Recipe.model_validate({**given, **changes})


def test_sharding_divides_memory() -> None:
    whole = {"parts": ["projector", "language"]}
    alone = make_plan(values(train=whole), 4)[MEMORY]
    ddp = make_plan(values(train=whole, parallel="ddp"), 4)[MEMORY]
    zero2 = make_plan(values(train=whole, parallel="zero2"), 4)[MEMORY]
    fsdp = make_plan(values(train=whole, parallel="fsdp2"), 4)[MEMORY]
    assert alone == ddp and zero2["weights"] == ddp["weights"]
    assert fsdp["optimizer"] == zero2["optimizer"] == pytest.approx(ddp["optimizer"] / 4, abs=0.01)


def test_rows_and_steps(tmp_path: Path) -> None:
    row = '{"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n'
    (tmp_path / "a.jsonl").write_text(row * 17)
    (tmp_path / "b.jsonl").write_text(row * 3)
    recipe = values(data={"files": ["a.jsonl", "b.jsonl"], "root": str(tmp_path)}, epochs=2)
    assert count_rows(recipe) == (20, []) and count_steps(recipe, 20) == 6
    assert count_steps(values(steps=7), None) == 7 and count_steps(values(), None) is None
    incomplete = values(data={"files": ["a.jsonl", "none.json"], "root": str(tmp_path), "rows": 99})
    assert count_rows(incomplete) == (99, [str(tmp_path / "none.json")])


def test_a_local_folder_has_its_own_configuration(tiny_model_folder: Path) -> None:
    plan = make_plan(values(model={"start": str(tiny_model_folder)}))
    from vip_llava.models.loading import load_weights

    model = load_weights(tiny_model_folder, device="cpu")
    assert plan[TOTAL] == sum(p.numel() for p in model.parameters())


def test_plans_that_are_refused() -> None:
    with pytest.raises(CheckpointError, match="needs the configuration of 'owner/other'"):
        build_meta_model(values(model={"start": "owner/other"}))
    with pytest.raises(DataError, match="among 3 devices"):
        make_plan(values(), 3)
