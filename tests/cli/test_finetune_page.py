"""docs/finetune.md: its commands, run in order on its own data with a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for kind, text in BLOCKS if kind == "text" for line in text.splitlines()
    if line.startswith("vip-llava ")
]  # fmt: skip
# What makes the run of a 7B model a run of a tiny one.
SMALL = {
    "model.tower": "null", "train.adapter.rank": "4", "train.adapter.alpha": "8", "steps": "2",
    "batch.size": "2", "batch.per_device": "2", "precision": "float32", "data.workers": "0", "log.every": "1",
}  # fmt: skip


def words_of(command: str, model: Path) -> list[str]:
    words = shlex.split(command.replace("mucai/vip-llava-7b", str(model)))[1:]
    if words[0] == "train":
        words[1] = str(ROOT / words[1])
        changes = {"model.start": str(model), **SMALL}
        words += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        words += ["--device", "cpu"]
    if words[0] == "ask":
        words += ["--max-new-tokens", "4"]
    return words


def test_the_commands_run_in_order(
    program: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model_folder: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [text for kind, text in BLOCKS if kind == "json"]
    (tmp_path / "mine").mkdir()
    shutil.copytree(ROOT / "examples" / "photos", tmp_path / "mine" / "photos")
    (tmp_path / "mine" / "instances.json").write_text(examples[0], encoding="utf-8")
    verbs = []
    for command in COMMANDS:
        words = words_of(command, tiny_model_folder)
        ran = program(*words)
        assert ran.code == 0, f"{command}\n{ran.err}"
        verbs.append(words[0])
        if words[:2] == ["data", "convert"]:
            with (tmp_path / "mine" / "rows.jsonl").open("a", encoding="utf-8") as rows:
                rows.write(examples[1])
    assert verbs == ["data", "data", "data", "train", "train", "ask", "convert", "ask"]
    for name in ("mine/rows.html", "runs/mine/adapter_model.safetensors", "runs/mine/loss.png"):
        assert (tmp_path / name).is_file()
    summary = json.loads((tmp_path / "runs/mine/training/run.json").read_text())
    assert summary["rows"] == 3 and set(summary["trainable"]) == {"adapters"}


def test_links_and_recipes_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
    recipes = set(re.findall(r"recipes/[\w./-]+\.yaml", PAGE))
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)
