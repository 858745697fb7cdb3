"""The README: its commands name recipes and options that exist, its links have targets."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from default_model.benchmarks.marked_questions import GROUPS
from vip_llava.evaluation.coco_annotations import object_of_json

FOLDER = Path(__file__).resolve().parents[1]
PAGE = (FOLDER / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^python projects/default_model/(\w+\.py) (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_commands_can_be_typed(script: str, arguments: str) -> None:
    words = shlex.split(arguments)
    if script == "train.py":
        spec = importlib.util.spec_from_file_location("default_model_train", FOLDER / script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        given = module._parser().parse_args(words)
        assert (FOLDER.parents[1] / given.recipe).is_file()
    elif "--groups" in words:
        assert set(words[words.index("--groups") + 1].split(",")) <= set(GROUPS)


def test_there_are_commands_for_all_stages() -> None:
    named = {name for _, arguments in COMMANDS for name in re.findall(r"stage\d\.yaml", arguments)}
    assert named == {path.name for path in (FOLDER / "recipes").iterdir()}


def test_the_line_of_the_data_can_be_read() -> None:
    [line] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    row = json.loads(line)
    assert [object_of_json(each).label for each in row["objects"]] == ["chair"]


def test_links_have_targets() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (FOLDER / target).exists(), target
