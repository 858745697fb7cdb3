"""`evaluate.py`: the command as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "evaluate.py"


@pytest.mark.slow
def test_a_model_is_scored(labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--data", str(labelled_folder)]
    command += ["--model", str(tiny_model_folder), "--device", "cpu", "--limit", "2"]
    command += ["--groups", "box,control,sides", "--json", str(tmp_path / "scores.json")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0 and "box: 2 questions" in ran.stderr, ran.stderr
    scores = json.loads((tmp_path / "scores.json").read_text("utf-8"))["scores"]
    assert {score["group"] for score in scores} == {"box", "control", "sides"}
    shown = subprocess.run([*command[:2], "--help"], capture_output=True, text=True, timeout=240)
    assert "The default model's validation" in shown.stdout and "--weights" in shown.stdout


@pytest.mark.default_model
@pytest.mark.slow
def test_the_default_model_is_scored(labelled_folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--data", str(labelled_folder)]
    command += ["--groups", "box", "--limit", "2"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0 and "box" in ran.stdout, ran.stderr
