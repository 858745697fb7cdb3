"""`train.py`: the plan, a run with a tiny model, mistakes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from default_model.training import assembly

FOLDER = Path(__file__).resolve().parents[1]
RECIPE = FOLDER / "recipes" / "stage1.yaml"
Train = Callable[..., int]


@pytest.fixture
def train() -> Train:
    """`train(*arguments)` runs the script in this process and returns its exit code."""
    spec = importlib.util.spec_from_file_location("default_model_train", FOLDER / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: int(module.main([str(each) for each in arguments]))


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    train: Train,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something is downloaded or built")

    for name in ("ensure_language_model", "ensure_tower", "build"):
        monkeypatch.setattr(assembly, name, fail)
    argv = ("--data", labelled_folder, "--out", tmp_path / "out", "--dry-run")
    assert train(RECIPE, *argv, "--set", "steps=12", "--set", "lora_rank=4") == 0
    ran = capsys.readouterr()
    plan = json.loads(ran.out)
    assert plan["steps"] == plan["settings"]["steps"] == 12
    assert plan["settings"]["lora_rank"] == 4 and plan["settings"]["lr_tower"] == 2e-4
    assert plan["photos"] == {
        "with several objects": 2,
        "of one object": 0,
        "kept for validation": 2,
    }
    assert set(plan["trained"]) == {"tower", "projector", "language model (LoRA)"}
    assert plan["batches"]["one"] == {"share": 0.66, "rows": 256}
    assert "no photos/photos.npz; continuing without it" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_run(
    train: Train,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lite_model: Any,
    lite_processor: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tiny model in place of the default one; its tokenizer needs more room for text."""
    torch.save({}, tmp_path / "tower.pth")
    room = dict.fromkeys(("one", "whole", "two", "four"), 300)
    made = assembly.mixture_config
    monkeypatch.setattr(
        assembly, "mixture_config", lambda recipe: replace(made(recipe), text_tokens=room)
    )
    monkeypatch.setattr(assembly, "ensure_language_model", lambda progress=None: tmp_path)
    monkeypatch.setattr(assembly, "new_default", lambda folder, *_: lite_model())
    monkeypatch.setattr(assembly, "default_processor", lambda folder, *_: lite_processor)
    monkeypatch.setattr(assembly, "load_published", lambda tower, state: None)
    recipe = tmp_path / "run.yaml"
    recipe.write_text("steps: 3\nworkers: 0\nlora_rank: 2\nrows_scale: 0.01\nreport_every: 1\n")
    out = tmp_path / "first"
    argv = (recipe, "--data", labelled_folder, "--tower", tmp_path / "tower.pth")
    argv += ("--device", "cpu")
    assert train(*argv, "--out", out) == 0
    ran = capsys.readouterr()
    reports = [json.loads(line) for line in ran.out.splitlines()]
    assert [report["step"] for report in reports] == [0, 1, 2]
    assert {"loss", "class_loss", "norm", "kind", "rows"} <= reports[0].keys()
    assert f"written: {out}" in ran.err
    assert train(*argv, "--out", tmp_path / "second", "--start", out) == 0
    assert (tmp_path / "second" / "parts.json").is_file()
    capsys.readouterr()
    assert train(*argv, "--out", tmp_path / "third", "--seconds", 0) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.yaml", "--data", "{made}", "--out", "o"], "none.yaml can't be read"),
        (["{recipe}", "--data", "{tmp}", "--out", "o"], "regions.jsonl does not exist"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--set", "steps"], "KEY=VALUE"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--set", "step=3"], "step: Extra inputs"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--tower", "none.pth"], "does not exist"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--start", "{tmp}"], "parts.json"),
    ],
)
def test_mistakes_are_reported(
    train: Train,
    labelled_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    names = {"made": labelled_folder, "tmp": tmp_path, "recipe": RECIPE}
    assert train(*(item.format(**names) for item in argv)) == 2
    assert message in capsys.readouterr().err
