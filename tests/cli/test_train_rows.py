"""`vip-llava train` with recipes on rows: plans, runs, resuming, mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., Any]
RECIPES = Path(__file__).parents[2] / "recipes"
TUTORIAL = RECIPES / "tutorial" / "tiny.yaml"
STAGE = RECIPES.parent / "projects" / "default_model" / "recipes" / "stage1.yaml"
SMALL = ("--set", "model.tiny.width=32", "--set", "model.tiny.image=56", "--device", "cpu")


def test_a_dry_run_prints_a_plan_and_writes_nothing(program: Program, tmp_path: Path) -> None:
    recipe = RECIPES / "vicuna-7b" / "stage2.yaml"
    argv = ("--devices", 8, "--set", "batch.per_device=4", "--dry-run", "--data", tmp_path)
    ran = program("train", recipe, *argv)
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    assert plan["batch"]["accumulation steps"] == 4
    assert plan["recipe"]["data"]["root"] == str(tmp_path)
    assert "4 rows x 8 devices x 4 accumulation steps = 128 rows per step; 9,258 steps" in ran.err
    assert "trainable: projector 37.8M, language 6,738.4M" in ran.err
    assert "vip-llava_stage2_mix.json does not exist" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_its_result(program: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ("train", TUTORIAL, "--out", out, *SMALL, "--set", "log.every=1")
    ran = program(*argv, "--set", "steps=2")
    assert ran.code == 0, ran.err
    reports = [json.loads(line) for line in ran.out.splitlines()]
    assert [r["step"] for r in reports if "loss" in r] == [1, 2]
    assert f"written: {out} (model)" in ran.err
    assert (out / "loss.png").is_file() and (out / "README.md").is_file()
    answer = program("ask", RECIPES.parent / "examples/photos/cat.jpg", "What?", "-m", out)
    assert answer.code == 0, answer.err
    again = program(*argv)
    assert again.code == 2 and "holds a finished run" in again.err


def test_an_adapter_is_merged_by_convert(
    program: Program, tmp_path: Path, tiny_model_folder: Path
) -> None:
    changes = {
        "model": f"{{start: {tiny_model_folder}, template: llava_v1}}",
        "train": "{parts: [projector], adapter: {kind: qlora, rank: 4, alpha: 8}}",
        "steps": "1",
    }
    out = tmp_path / "adapter"
    recipe = tmp_path / "run.yaml"
    text = TUTORIAL.read_text().replace("$recipe", str(TUTORIAL.parent))
    start, end = text.index("model:"), text.index("data:")
    recipe.write_text(text[:start] + "model: {}\n" + text[end:])
    argv = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
    ran = program("train", recipe, "--out", out, "--device", "cpu", *argv)
    assert ran.code == 0, ran.err
    assert "(adapter)" in ran.err and (out / "adapter_model.safetensors").is_file()
    lacking = program("convert", out, tmp_path / "x", "--to", "hf")
    assert lacking.code == 2 and "--base" in lacking.err
    merged = tmp_path / "merged"
    done = program("convert", out, merged, "--to", "original", "--base", tiny_model_folder)
    assert done.code == 0, done.err
    photo = RECIPES.parent / "examples/photos/cat.jpg"
    for model in (("-m", merged), ("-m", out, "--base", tiny_model_folder)):
        ran = program("ask", photo, "What?", *model, "--max-new-tokens", 4)
        assert ran.code == 0, ran.err


def test_an_interrupted_run_resumes_only_with_the_option(program: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ("train", TUTORIAL, "--out", out, *SMALL, "--set", "save.every=1", "--set", "steps=2")
    argv += ("--set", "save.keep=2", "--set", "log.every=1")
    whole = program(*argv)
    assert whole.code == 0, whole.err
    # as if it had been interrupted
    for path in out.iterdir():
        if path.name != "training":
            path.unlink()
    shutil.rmtree(out / "training" / "checkpoint-2")
    stopped = program(*argv)
    assert stopped.code == 2 and "(checkpoint-1); continue it with --resume" in stopped.err
    ended = program(*argv, "--resume")
    assert ended.code == 0, ended.err
    losses = [line for line in map(json.loads, whole.out.splitlines()) if "loss" in line]
    assert [line for line in map(json.loads, ended.out.splitlines()) if "loss" in line] == losses[
        1:
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([str(TUTORIAL), "--set", "out=null"], "--out is missing"),
        ([str(TUTORIAL), "--out", "o", "--devices", "2"], "torchrun --nproc-per-node 2"),
        ([str(TUTORIAL), "--out", "o", "--data", "{tmp}"], "rows.jsonl does not exist"),
        ([str(TUTORIAL), "--out", "o", "--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        ([str(TUTORIAL), "--out", "o", "--set", "optimizer.lr=x"], "optimizer.lr"),
        ([str(TUTORIAL), "--out", "o", "--set", "steps"], "KEY=VALUE"),
        ([str(STAGE)], "python projects/default_model/train.py"),
    ],
)  # fmt: skip
def test_mistakes_are_reported(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = program("train", *(item.format(tmp=tmp_path) for item in argv))
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_help_has_examples(program: Program) -> None:
    ran = program("train", "--help")
    for word in (
        "--dry-run",
        "--resume",
        "torchrun",
        "recipes/tutorial/tiny.yaml",
    ):
        assert word in ran.out, word
