"""The documents tell the truth: every command and every Python block of them is run here.

Commands run in a temporary folder that has the examples, so nothing is written into the checkout.
`make demo` is run by its underlying command; the other `make` targets must exist (running
`make test` here would run this test).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/api.md",
    "docs/how_it_works.md",
    "docs/model_card.md",
    "docs/finetune.md",
    "docs/training.md",
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
# Verbs of the program that open a model, unless another one is named.
WITH_MODEL = ("ask", "chat")
TIMEOUT = 300


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        if not (ROOT / page).exists():
            continue
        for number, match in enumerate(BLOCK.finditer((ROOT / page).read_text("utf-8"))):
            block = Block(page, number, match[1], match[2])
            found += [block] if block.language in languages else []
    return found


def commands() -> list[str]:
    """Every command of a shell block, `$ ` and comments taken off, continued lines joined."""
    found: list[str] = []
    for block in blocks("bash", "console", "sh", "shell"):
        prompted = block.language == "console"
        for line in block.text.replace("\\\n", " ").splitlines():
            if prompted and not line.startswith("$ "):
                continue  # what a command prints
            command = line.removeprefix("$ ").strip()
            if command and not command.startswith("#") and command not in found:
                found.append(command)
    return found


def marks(needs_model: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.default_model, pytest.mark.slow] if needs_model else []


def command_cases(program: str) -> list[object]:
    cases = []
    for command in commands():
        words = shlex.split(command)
        if words[0] == program:
            needs = program == "vip-llava" and words[1] in WITH_MODEL and "--help" not in words
            cases.append(pytest.param(command, marks=marks(needs), id=command))
    return cases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a reader of the README has it: the examples are there."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(words: list[str], folder: Path) -> str:
    """Run a command with this environment's programs first; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("command", command_cases("vip-llava"))
def test_commands_of_the_program(command: str, folder: Path) -> None:
    words = shlex.split(command)
    assert run(words, folder).strip() or "--save" in words
    if "--save" in words:
        assert (folder / words[words.index("--save") + 1]).stat().st_size > 0


@pytest.mark.parametrize("command", command_cases("make"))
def test_make_targets_exist(command: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    run(["make", "-C", str(ROOT), "--dry-run", *shlex.split(command)[1:]], ROOT)


@pytest.mark.default_model
@pytest.mark.slow
def test_the_demo_answers(folder: Path) -> None:
    """What `make demo` runs after its set-up, with this environment's program."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    steps = run(["make", "-C", str(ROOT), "--dry-run", "--no-print-directory", "demo"], ROOT)
    asked = [line for line in steps.splitlines() if "vip-llava ask" in line]
    assert len(asked) == 1
    words = shlex.split(asked[0])
    words[0] = Path(words[0]).name
    assert run(words, folder).strip()
    assert (folder / words[words.index("--save") + 1]).exists()


def test_every_command_is_run_by_some_test() -> None:
    """A command of another program needs a test of its own before it is written into a page."""
    other = [command for command in commands() if not command.startswith(("vip-llava ", "make "))]
    assert other == []


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block, marks=marks("load(" in block.text.replace("json.load", "")), id=block.name
        )
        for block in blocks("python")
    ],
)
def test_python_blocks(block: Block, folder: Path) -> None:
    script = folder / "block.py"
    script.write_text(block.text, "utf-8")
    run([sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)], folder)


def test_json_blocks_are_regions() -> None:
    import json

    from vip_llava.regions import regions_from_json

    found = [block for block in blocks("json") if "api.md" in block.name]
    assert found
    for block in found:
        assert regions_from_json(json.loads(block.text)), block.name


def test_links_lead_somewhere() -> None:
    pages = [ROOT / name for name in PAGES if (ROOT / name).exists()]
    pages += [*(ROOT / "docs").glob("*.md"), ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
    broken = []
    for page in set(pages):
        for match in LINK.finditer(page.read_text("utf-8")):
            target = (page.parent / match[1]).resolve()
            if not target.exists():
                broken.append(f"{page.relative_to(ROOT)}: {match[1]}")
            elif match[2] and match[2][1:] not in anchors(target):
                broken.append(f"{page.relative_to(ROOT)}: {match[1]}{match[2]}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_page_of_errors_names_every_error() -> None:
    from vip_llava import errors

    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    named = re.findall(r"^\| `(\w+)` \| `(\w+)`", page, re.MULTILINE)
    assert sorted(name for name, _ in named) == sorted(errors.__all__)
    for name, base in named:
        assert base in [kind.__name__ for kind in getattr(errors, name).__mro__]


def test_the_page_of_tests_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "tests.md").read_text("utf-8")
    named = set(re.findall(r"`((?:tests|benchmarks)/[\w./]+)`", page))
    assert len(named) > 80
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_extras_are_those_of_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    readme = (ROOT / "README.md").read_text("utf-8")
    sentence = readme[readme.index("Extras:") :].split("\n\n")[0]
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in sentence


def test_the_tested_versions_satisfy_the_metadata() -> None:
    """`constraints.txt` pins every dependency that `make setup` installs, within its bounds."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.search(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert extras is not None
    wanted = list(project["dependencies"])
    for extra in extras[1].split(","):
        wanted += project["optional-dependencies"][extra]
    wrong = []
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        if requirement.name != "vip-llava" and (pin is None or pin not in requirement.specifier):
            wrong.append(f"{requirement}: constraints.txt has {pin}")
    assert wrong == []
