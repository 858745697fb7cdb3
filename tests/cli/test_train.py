"""`vip-llava train`: the plan, a run on a tiny model, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vip_llava.training.scenes import default_model

Program = Callable[..., Any]
RECIPE = Path(__file__).parents[2] / "recipes" / "default-model.yaml"


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    program: Program,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something is fetched or built")

    for name in ("ensure_language_model", "ensure_tower", "build"):
        monkeypatch.setattr(default_model, name, fail)
    argv = ("--data", labelled_folder, "--out", tmp_path / "out", "--dry-run")
    ran = program("train", RECIPE, *argv, "--set", "steps=12", "--set", "lora_rank=4")
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    assert plan["steps"] == plan["settings"]["steps"] == 12
    assert plan["settings"]["lora_rank"] == 4 and plan["settings"]["lr_tower"] == 2e-4
    assert plan["photos"] == {
        "with several things": 2,
        "of one thing": 0,
        "kept for validation": 2,
    }
    assert set(plan["trained"]) == {"tower", "projector", "language model (LoRA)"}
    assert plan["batches"]["one"] == {"share": 0.66, "rows": 256}
    assert "no photos/photos.npz; going on without it" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_run(
    program: Program,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lite_model: Any,
    lite_processor: Any,
) -> None:
    """The tiny model in place of the default one; text gets more room, for its tokenizer."""
    torch.save({}, tmp_path / "tower.pth")
    room = dict.fromkeys(("one", "whole", "two", "four"), 300)
    made = default_model.mix_settings

    def roomy(settings: Any) -> Any:
        from dataclasses import replace

        return replace(made(settings), text_tokens=room)

    monkeypatch.setattr(default_model, "mix_settings", roomy)
    monkeypatch.setattr(default_model, "ensure_language_model", lambda progress=None: tmp_path)
    monkeypatch.setattr(default_model, "new_default", lambda folder, *_: lite_model())
    monkeypatch.setattr(default_model, "default_processor", lambda folder, *_: lite_processor)
    monkeypatch.setattr(default_model, "load_published", lambda tower, state: None)
    recipe = tmp_path / "run.yaml"
    recipe.write_text("steps: 3\nworkers: 0\nlora_rank: 2\nrows_scale: 0.01\nreport_every: 1\n")
    out = tmp_path / "first"
    argv = ("train", recipe, "--data", labelled_folder, "--tower", tmp_path / "tower.pth")
    ran = program(*argv, "--out", out, "--device", "cpu")
    assert ran.code == 0, ran.err
    reports = [json.loads(line) for line in ran.out.splitlines()]
    assert [report["step"] for report in reports] == [0, 1, 2]
    assert {"loss", "class_loss", "norm", "kind", "rows"} <= reports[0].keys()
    assert f"written: {out}" in ran.err
    second = program(*argv, "--out", tmp_path / "second", "--device", "cpu", "--start", out)
    assert second.code == 0 and (tmp_path / "second" / "parts.json").is_file(), second.err
    short = program(*argv, "--out", tmp_path / "third", "--device", "cpu", "--seconds", 0)
    assert short.code == 0 and len(short.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{recipe}", "--data", "{made}"], "--out"),
        (["none.yaml", "--data", "{made}", "--out", "o"], "none.yaml can't be read"),
        (["{recipe}", "--data", "{tmp}", "--out", "o"], "regions.jsonl does not exist"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--set", "steps"], "KEY=VALUE"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--set", "step=3"], "step: Extra inputs"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--tower", "none.pth"], "no such file"),
        (["{recipe}", "--data", "{made}", "--out", "o", "--start", "{tmp}"], "parts.json"),
    ],
)
def test_a_mistake_is_told(
    program: Program, labelled_folder: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    names = {"made": labelled_folder, "tmp": tmp_path, "recipe": RECIPE}
    ran = program("train", *(item.format(**names) for item in argv))
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
