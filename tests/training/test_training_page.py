"""docs/training.md names every recipe script and key, and only commands with existing recipes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from vip_llava.training.recipes.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
# The training scripts of the original.
SCRIPTS = (
    "pretrain.sh", "finetune_stage2.sh", "finetune_stage2_lora.sh", "finetune_stage3.sh",
    "finetune_task.sh", "finetune_task_lora.sh", "pretrain_vip_llava_llama3.sh",
    "finetune_vip_llava_llama3_stage2.sh", "pretrain_vip_llava_phi3.sh",
    "finetune_vip_llava_phi3_stage2.sh", "pretrain_llava_1_5_llama3.sh",
    "finetune_llava_1_5_llama3.sh", "pretrain_llava_1_5_phi3.sh", "finetune_llava_1_5_phi3.sh",
)  # fmt: skip


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        if field.description:
            found.add(prefix + name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= keys(kind, f"{prefix}{name}.")
    return found


def test_every_script_has_its_recipe() -> None:
    section = PAGE.partition("## Where is my script?")[2].partition("\n## ")[0]
    assert all(f"`{script}`" in section for script in SCRIPTS)
    for name in re.findall(r"`([\w./-]+\.yaml)`", section):
        places = [name.replace("BASE", base) for base in ("vicuna-7b", "vicuna-13b")]
        assert any((ROOT / "recipes").rglob(place) for place in places), name
        if "/" in name:
            assert all((ROOT / "recipes" / place).is_file() for place in places), name


def test_the_keys_are_those_of_a_recipe() -> None:
    table = PAGE.partition("## A recipe, key by key")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w.]+)`", table, re.MULTILINE)) == keys(Recipe)


def test_links_have_targets() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (ROOT / "docs" / target).exists(), target


COMMANDS = [
    line
    for line in PAGE.partition("## The default model")[0].splitlines()
    if " train recipes/" in line
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_name_recipes_and_keys(line: str) -> None:
    words = shlex.split(line.removeprefix("$ ").partition(">")[0])
    recipe = next(word for word in words if word.startswith("recipes/"))
    assert (ROOT / recipe).is_file()
    changed = [words[i + 1].partition("=")[0] for i, w in enumerate(words) if w == "--set"]
    assert set(changed) <= keys(Recipe)
