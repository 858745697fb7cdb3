"""The benchmark of several GPUs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script() -> Iterator[Callable[[str], Any]]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))  # as when it is started by its path

    def opened(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield opened
    sys.path.remove(str(FOLDER))
    for name in {"scaling", "training_step"} - before:
        sys.modules.pop(name, None)


def test_rows_are_shared_out_evenly(script: Callable[[str], Any]) -> None:
    scaling = script("scaling")
    samples = scaling.make_samples(scaling.TINY, scaling.Case(2, 8, 40, 40, 700, 0.6))
    parts = scaling.balanced_split(samples, 4)
    assert sorted(s.id for part in parts for s in part) == sorted(s.id for s in samples)
    tokens = [sum(sample.length for sample in part) for part in parts]
    assert max(tokens) - min(tokens) <= max(sample.length for sample in samples)


@pytest.mark.slow
def test_two_processes_leave_their_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    arguments = [str(FOLDER / "scaling.py"), "--tiny", "--out", str(tmp_path)]
    made = subprocess.run(
        [*command, "--standalone", *arguments], capture_output=True, text=True, timeout=240
    )
    assert made.returncode == 0, made.stderr[-2000:]
    found = json.loads((tmp_path / "2.json").read_text())
    assert found["processes"] == 2 and found["rows"] > 0
    assert "| 2 | " in made.stdout and "100%" in made.stdout
