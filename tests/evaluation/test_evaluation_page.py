"""docs/evaluation.md: its Python code runs, and it names every benchmark and task."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vip_llava.evaluation.benchmarks import BENCHMARKS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")


@pytest.mark.slow
def test_the_python_code_runs(
    labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "labelled").symlink_to(labelled_folder)
    code = code.replace("load()", f"load({str(tiny_model_folder)!r})")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "right box " in ran.stdout and (tmp_path / "runs" / "shapes" / "scores.json").is_file()


def test_the_page_names_every_benchmark_and_task() -> None:
    for name in BENCHMARKS:
        assert f"| `{name}` |" in PAGE
        assert f"_{name.replace('-', '_')}`" in PAGE
