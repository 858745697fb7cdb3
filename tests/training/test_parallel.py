"""Several processes: the same steps as one, exact resuming, portable checkpoints."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import trainer

from vip_llava.errors import MissingExtraError, RequestError
from vip_llava.training.parallel import (
    STRATEGIES,
    fsdp_config,
    layer_class_names,
    parallel_arguments,
    zero_config,
)

SCRIPT = Path(__file__).parent / "tiny.py"
RECIPES = Path(__file__).parents[2] / "recipes" / "parallel"


def pair(out: Path, *, fails: bool = False, **settings: Any) -> Path:
    """Train in `out` with two processes, without accumulation; returns the last checkpoint."""
    options = {"out": str(out), "gradient_accumulation_steps": 1, "save_total_limit": 9, **settings}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    command = [sys.executable, *launch, json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == fails, result.stderr[-3000:]
    return out / "checkpoint-10"


def taken_over(old: Path, step: int, out: Path) -> Path:
    shutil.copytree(old / f"checkpoint-{step}", out / f"checkpoint-{step}")
    return out


def assert_close(one: Path, other: Path) -> None:
    """The same run except for the order of sums."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-3, atol=2e-5, msg=key)
    logs = [json.loads((each / "trainer_state.json").read_text()) for each in (one, other)]
    losses = [[e["loss"] for e in log["log_history"] if "loss" in e] for log in logs]
    assert len(losses[0]) == 10
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_a_run_moves_between_one_process_ddp_and_fsdp2(tmp_path: Path) -> None:
    """One process to step 3, DDP to 6, FSDP2 to 9, one to 10: the same as one process throughout."""
    whole = tmp_path / "whole"
    trainer(whole, save_total_limit=9, bad=(7,), limit=2).train()
    common = {"bad": [7], "limit": 2, "resume": True}
    ddp = taken_over(whole, 3, tmp_path / "ddp")
    assert_close(whole / "checkpoint-10", pair(ddp, **common))
    fsdp2 = taken_over(ddp, 6, tmp_path / "fsdp2")
    assert_close(whole / "checkpoint-10", pair(fsdp2, parallel="fsdp2", **common))
    one = taken_over(fsdp2, 9, tmp_path / "one")
    trainer(one, bad=(7,), limit=2).train(resume_from_checkpoint=True)
    assert_close(whole / "checkpoint-10", one / "checkpoint-10")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_resume_exactly(tmp_path: Path, parallel: str) -> None:
    """Killed at step 5 and resumed from step 3, with dropout: bit for bit the same run."""
    common = {"parallel": parallel, "dropout": 0.2}
    whole = pair(tmp_path / "whole", **common)
    pair(tmp_path / "cut", kill=5, fails=True, **common)
    cut = pair(tmp_path / "cut", resume=True, **common)
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = load_file(whole / name), load_file(cut / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("state.json", "random.json"):
        assert json.loads((whole / name).read_text()) == json.loads((cut / name).read_text())
    logs = [json.loads((each / "trainer_state.json").read_text()) for each in (whole, cut)]
    losses = [[e for e in log["log_history"] if "loss" in e] for log in logs]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_projector_alone_in_two_processes(tmp_path: Path) -> None:
    """Stage 1, in which one process may have images in its batch and the other none."""
    whole = tmp_path / "whole"
    trainer(whole, parts=("projector",)).train()
    for parallel in ("ddp", "fsdp2"):
        last = pair(tmp_path / parallel, parallel=parallel, parts=["projector"])
        assert_close(whole / "checkpoint-10", last)


@pytest.mark.parametrize("kind", ["zero2", "zero3", "zero3-offload"])
def test_the_files_for_zero_are_up_to_date(kind: str) -> None:
    assert json.loads((RECIPES / f"{kind}.json").read_text()) == zero_config(kind)
    assert zero_config(kind)["zero_optimization"]["stage"] == int(kind[4])
    if importlib.util.find_spec("deepspeed") is None:
        with pytest.raises(MissingExtraError, match="deepspeed"):
            parallel_arguments(kind)


def test_the_files_for_fsdp2_are_up_to_date() -> None:
    assert json.loads((RECIPES / "fsdp2.json").read_text()) == fsdp_config()
    offload = json.loads((RECIPES / "fsdp2-offload.json").read_text())
    assert offload == fsdp_config(offload=True)
    assert fsdp_config()["version"] == 2


def test_every_file_is_a_strategy() -> None:
    assert {path.stem for path in RECIPES.iterdir()} == set(STRATEGIES) - {"ddp"}


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(RequestError, match="'dp'"):
        parallel_arguments("dp")


def test_layer_classes_are_found(tiny_vip: Any) -> None:
    assert layer_class_names(tiny_vip) == ["CLIPEncoderLayer", "LlamaDecoderLayer"]


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    for name in ("plain", "checkpointing"):
        out = tmp_path / name
        trainer(out, checkpointing=name != "plain", save_total_limit=1).train()
    assert_close(tmp_path / "plain" / "checkpoint-10", tmp_path / "checkpointing" / "checkpoint-10")
