"""Whole runs by recipes, on a tiny model and the rows of the tutorial, and their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from vip_llava.data.reading import RowFile
from vip_llava.errors import DataError, MissingExtraError, RequestError
from vip_llava.models.loading import load_model
from vip_llava.training.data_module import (
    ConcatRows,
    build_data_module,
    open_rows,
    row_texts,
)
from vip_llava.training.metrics import read_metrics
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.recipes.recipe_files import load_recipe
from vip_llava.training.resume.checkpoint_folder import latest_checkpoint
from vip_llava.training.run import run

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "recipes" / "tutorial" / "tiny.yaml"
SMALL: dict[str, Any] = {
    "model.tiny.width": 32,
    "model.tiny.image": 56,
    "model.tiny.vocabulary": 320,
    "log.every": 1,
    "log.samples": 0,
    "save.every": 0,
    "steps": 3,
}


def recipe(**changes: Any) -> Recipe:
    return load_recipe(TUTORIAL, {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}})


def losses(out: Path) -> list[float]:
    return [m["loss"] for m in read_metrics(out / "training" / "metrics.jsonl") if "loss" in m]


def test_a_run_lowers_the_loss_and_exports_a_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[dict[str, Any]] = []
    made = recipe(steps=12, log__samples=2, log__samples_every=6, optimizer__lr=8e-3)
    stages: list[tuple[str, int, int]] = []
    summary = run(made, out, report=told.append, progress=lambda *each: stages.append(each))
    assert summary.result == "model" and summary.rows == 51
    first, *_, last = losses(out)
    assert last < first - 1 and len(told) == 13
    assert stages[-1][1:] == (12, 12) and "loss" in stages[-1][0]
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.png"} <= names
    _, processor = load_model(out, device="cpu")
    assert processor.template.name == "llava_v1" and processor.geometry.mode == "pad"
    before = load_file(out / "training" / "tiny" / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert len(after) and not any(torch.equal(t, before.get(n, t[:0])) for n, t in after.items())
    lines = (out / "training" / "samples.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [(a["step"], a["id"]) for a in answers] == [
        (step, name) for step in (6, 12) for name in ("tutorial-1", "tutorial-26")
    ]
    assert answers[0]["wanted"] == "The left eye of the cat."
    facts = json.loads((out / "training" / "run.json").read_text())
    assert facts["precision"] == "float32" and facts["trainable"].keys() == {
        "projector", "language", "tower",
    }  # fmt: skip
    assert not (out / "training" / "result").exists()


class Stop(TrainerCallback):
    """Interrupts the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_an_interrupted_run_resumes_exactly(tmp_path: Path, kind: str) -> None:
    lora = {"train": "{parts: [projector], adapter: {kind: lora, rank: 4, alpha: 8}}"}
    made = recipe(steps=5, save__every=2, **(lora if kind == "lora" else {}))
    run(made, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "stopped", callbacks=[Stop(3)])
    found = latest_checkpoint(tmp_path / "stopped" / "training")
    assert found is not None and found.name == "checkpoint-2"
    with pytest.raises(RequestError, match=r"unfinished run \(checkpoint-2\)"):
        run(made, tmp_path / "stopped")
    run(made, tmp_path / "stopped", resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    name = "model.safetensors" if kind == "whole" else "adapter_model.safetensors"
    one, other = (load_file(tmp_path / each / name) for each in ("straight", "stopped"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    with pytest.raises(RequestError, match="holds a finished run"):
        run(made, tmp_path / "stopped", resume=True)


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    run(recipe(steps=1), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_run_continues_an_adapter(tmp_path: Path) -> None:
    train = "{parts: [projector], adapter: {kind: lora, rank: 4, alpha: 8, dropout: 0}}"
    run(recipe(train=train, steps=2), tmp_path / "one")
    model = {"start": str(tmp_path / "one" / "training" / "tiny"), "template": "llava_v1"}
    further = {**model, "aspect": "pad", "adapter": str(tmp_path / "one")}
    second = recipe(train=train, steps=2, model=further, seed=1)
    summary = run(second, tmp_path / "two")
    assert summary.result == "adapter"
    assert losses(tmp_path / "two")[0] < losses(tmp_path / "one")[0]


@pytest.mark.parametrize("how", ["packing", "grouped"])
def test_other_orders_of_rows(tmp_path: Path, how: str) -> None:
    made = recipe(
        **{f"data__{how}": True, "data__packed_tokens": 400 if how == "packing" else None}
    )
    run(made, tmp_path / "out")
    assert len(losses(tmp_path / "out")) == 3
    plain = run(recipe(), tmp_path / "plain")
    assert plain.steps == 3
    # The same initial model: the first losses are close, whichever rows come first.
    first = losses(tmp_path / "out")[0], losses(tmp_path / "plain")[0]
    assert first[0] == pytest.approx(first[1], abs=0.3)


def test_packing_keeps_the_average_batch_size(tmp_path: Path) -> None:
    made = recipe(data__packing=True, data__packed_tokens=300, batch__size=20)
    rows = open_rows(made)

    from vip_llava.training.recipes.model_init import load_initial_model

    initial = load_initial_model(made, tmp_path, dtype=torch.float32, texts=row_texts(rows))
    for world in (1, 2):
        data = build_data_module(made, rows, initial.processor, world)
        assert data.rows_per_step == pytest.approx(20, rel=0.35)
        packs = data.batches.batches(0)
        assert sorted(row for each in packs for row in each) == list(range(51))


def bad_file(folder: Path) -> Path:
    lines = (TUTORIAL.parent / "rows.jsonl").read_text().splitlines()[:10]
    broken = {**json.loads(lines[3]), "image": "none.jpg"}
    lines[3] = json.dumps(broken)
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


def data_of(folder: Path, **changes: Any) -> dict[str, Any]:
    images = os.path.relpath(ROOT / "examples" / "photos", folder)
    values = {"root": str(folder), "files": "rows.jsonl", "images": images, "workers": 0}
    return {**values, **changes}


def test_bad_rows_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    folder = bad_file(tmp_path)
    with pytest.raises(DataError, match=r"row 4 \('tutorial-4'\)"):
        run(recipe(data=data_of(folder, max_failures=0)), tmp_path / "one")
    summary = run(recipe(data=data_of(folder, max_failures=10), steps=1), tmp_path / "two")
    assert summary.failures["failed"] == 1
    assert "Bad rows: 1." in (tmp_path / "two" / "README.md").read_text()
    told = (tmp_path / "two" / "training" / "failures.jsonl").read_text()
    assert json.loads(told.splitlines()[0])["id"] == "tutorial-4"


def test_rows_of_several_files_are_concatenated(tmp_path: Path) -> None:
    lines = (TUTORIAL.parent / "rows.jsonl").read_text().splitlines()
    for name, part in (("a.jsonl", lines[:3]), ("b.jsonl", lines[3:5])):
        (tmp_path / name).write_text("\n".join(part))
    rows = ConcatRows([RowFile.open(tmp_path / "a.jsonl"), RowFile.open(tmp_path / "b.jsonl")])
    assert [rows[index].id for index in range(len(rows))] == [f"tutorial-{n}" for n in range(1, 6)]
    assert rows[-1].id == "tutorial-5" and rows.raw(3)["id"] == "tutorial-4"
    assert rows.where(3).endswith("b.jsonl: row 1")
    with pytest.raises(IndexError):
        rows[5]


def test_runs_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[tuple[Recipe, type[Exception], str]] = [
        (recipe(data=data_of(tmp_path)), DataError, r"rows\.jsonl does not exist"),
    ]
    for made, kind, message in refused:
        with pytest.raises(kind, match=message):
            run(made, tmp_path / "out")
    with pytest.raises(RequestError, match="--device tpu"):
        run(recipe(), tmp_path / "out", device="tpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install tensorboard"):
        run(recipe(log__to="tensorboard"), tmp_path / "out")


def test_the_stages_in_sequence(split: dict[str, Path], tmp_path: Path) -> None:
    """The stage files of the published recipes on a small model: 1, 2, LoRA and 3."""
    captions = [
        {
            "id": str(n),
            "image": "cat.jpg",
            "conversations": [
                {"from": "human", "value": "<image>"},
                {"from": "gpt", "value": f"a cat {n}"},
            ],
        }
        for n in range(4)
    ]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    shared: dict[str, Any] = {
        "precision": "float32", "steps": 2, "batch": {"size": 4, "per_device": 2},
        "activation_checkpointing": True,
    }  # fmt: skip
    stages = ROOT / "recipes" / "stages"

    def stage(name: str, **changes: Any) -> Recipe:
        return load_recipe(stages / f"{name}.yaml", {**shared, **changes})

    one = stage(
        "stage1",
        data=data_of(tmp_path, files="captions.json"),
        **{f"model.{k}": str(v) for k, v in split.items()},
    )
    assert run(one, tmp_path / "one").result == "projector"
    start = {
        **{k: str(v) for k, v in split.items()},
        "projector": str(tmp_path / "one"),
        "template": "llava_v1",
    }
    rows = data_of(TUTORIAL.parent)
    on = {f"model.{k}": v for k, v in start.items()}
    assert run(stage("stage2", data=rows, **on), tmp_path / "two").result == "model"
    lora = run(stage("stage2-lora", data=rows, **on), tmp_path / "lora")
    assert lora.result == "adapter"
    load_model(tmp_path / "lora", base=start["base"], vision_tower=start["tower"], device="cpu")
    third = stage("stage3", data=rows, **{"model.start": str(tmp_path / "two")})
    run(third, tmp_path / "three")
    two, three = (load_file(tmp_path / n / "model.safetensors") for n in ("two", "three"))
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    change = (three[name] - two[name]).abs().max()
    assert 0 < change < 1e-5, "a learning rate of 2e-7 moves weights by about that much per step"
    tower = [n for n in two if "vision_tower" in n]
    assert tower and all(torch.equal(two[n], three[n]) for n in tower)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp2-lora"])
def test_two_processes_train_the_same_model(tmp_path: Path, kind: str) -> None:
    """Started by torchrun; the exported weights are those of a single process."""
    parallel, _, lora = kind.partition("-")
    changes = {"batch.size": 8, "batch.per_device": 4, "parallel": parallel}
    if lora:
        adapter = "adapter: {kind: lora, rank: 4, alpha: 8, dropout: 0}"
        changes["train"] = f"{{parts: [projector], {adapter}}}"
    words = [f"--set={key}={value}" for key, value in {**SMALL, **changes}.items()]
    argv = ["-m", "vip_llava", "train", str(TUTORIAL), "--device", "cpu", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("two", launcher), ("one", [])):
        command = [sys.executable, *start, *argv, "--out", str(tmp_path / name)]
        made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert made.returncode == 0, made.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
