"""`vip-llava train`: which recipes it takes. The runs themselves are in `test_train_rows.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., Any]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", range(1, 8))
def test_a_recipe_of_the_default_model_is_for_its_project(program: Program, stage: int) -> None:
    recipe = ROOT / "projects" / "default_model" / "recipes" / f"stage{stage}.yaml"
    ran = program("train", recipe, "--data", "x", "--out", "y")
    assert ran.code == 2 and "python projects/default_model/train.py" in ran.err


def test_a_recipe_that_does_not_exist(program: Program) -> None:
    ran = program("train", "none.yaml", "--out", "o")
    assert ran.code == 2 and "none.yaml" in ran.err and "Traceback" not in ran.err


def test_an_override_needs_a_value(program: Program) -> None:
    recipe = ROOT / "recipes" / "tutorial" / "tiny.yaml"
    ran = program("train", recipe, "--out", "o", "--set", "steps")
    assert ran.code == 2 and "KEY=VALUE" in ran.err
