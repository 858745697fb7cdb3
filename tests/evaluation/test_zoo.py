"""docs/model_zoo.md: the page is generated from the data, and the data has the published scores."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def zoo() -> Any:
    spec = importlib.util.spec_from_file_location("model_zoo", DOCS / "model_zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    listed = json.loads((DOCS / "model_zoo.json").read_text("utf-8"))["models"]
    found = {each["name"]: each for each in listed}
    assert len(found) == len(listed) == 14
    return found


def test_the_page_is_generated_from_the_data(zoo: Any) -> None:
    assert zoo.PAGE.read_text("utf-8") == zoo.render_page(), "run python docs/model_zoo.py"


def test_published_scores(models: dict[str, Any]) -> None:
    """A few, read from the original's pages by eye."""
    small = models["mucai/vip-llava-7b"]["published"]
    large = models["mucai/vip-llava-13b"]["published"]
    assert (small["visual7w"], small["pointqa"], small["vip-bench bbox"]) == (86.6, 71.3, 48.4)
    assert (large["vip-bench human"], large["MME"], large["VQAv2"]) == (48.2, 1564.0, 80.1)
    assert models["mucai/vip-llava-phi-3-mini-3.8B"]["published"]["POPE"] == 88.1
    assert models["liuhaotian/llava-v1.5-13b"]["published"]["TextVQA"] == 61.3
    assert all(each["source"] for each in models.values() if each["published"])


def test_a_measured_score_has_its_run(zoo: Any, models: dict[str, Any]) -> None:
    for each in models.values():
        assert all(score["run"] for score in each["measured"].values())
    score = {"value": 86.1, "low": 85.0, "high": 87.2, "run": "runs/x"}
    checkpoint = {**models["mucai/vip-llava-7b"], "measured": {"visual7w": score}}
    line = zoo._table([checkpoint], ["visual7w"], ours=True)[2]
    assert line.endswith("| 86.6 | visual7w 86.1 [85, 87.2] (runs/x) |")
