"""The cluster examples: they can be parsed, and what they start is a recipe and options that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"


def started(text: str) -> list[str]:
    """The words after `-m vip_llava` of the command in an example."""
    found = re.search(r"-m vip_llava ((?:.|\\\n)*?)\n?$", text.strip())
    assert found is not None
    return found[1].replace("\\\n", " ").replace('"', "").split()


@pytest.mark.parametrize("name", ["slurm.sh", "skypilot.yaml"])
def test_what_is_started_exists(name: str) -> None:
    text = (CLUSTER / name).read_text()
    recipes = re.findall(r"recipes/\S+\.yaml", text)
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)
    command = yaml.safe_load(text)["run"] if name.endswith(".yaml") else text
    words = started(command)
    assert words[0] == "train" and "--resume" in words
    options = {word for word in words if word.startswith("--")}
    assert options <= {"--data", "--out", "--resume"}


def test_the_slurm_script_is_a_shell_script() -> None:
    made = subprocess.run(
        ["bash", "-n", str(CLUSTER / "slurm.sh")], capture_output=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_the_sky_job_has_its_sections() -> None:
    job = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert {"resources", "file_mounts", "setup", "run", "envs"} <= job.keys()
