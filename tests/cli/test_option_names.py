"""Every option and argument that a message names exists: on the command line, and in `load()`."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import vip_llava
from vip_llava.assistant import load
from vip_llava.cli.main import app
from vip_llava.cli.model_options import ModelOptions, option_name

SOURCE = Path(vip_llava.__file__).parent
#: Options of programs that messages tell the reader to run.
OTHER_PROGRAMS = {"--nproc-per-node": "torchrun", "--no-deps": "pip download"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9]")
#: "give vision_tower=", "give device= or device_map=", "base= (command line: --base)".
KEYWORD = re.compile(r"(?<![\w.])([a-z_]+)=(?=[\s,;)]|$)")


def commands(command: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each verb with its options."""
    for short, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{name} {short}".strip())
    helps = set(command.context_settings.get("help_option_names", ["--help"])) | {"--help"}
    yield name, helps | {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}


VERBS = dict(commands(typer.main.get_command(app)))
MODEL_VERBS = [verb for verb, options in VERBS.items() if "--quantization" in options]
KEYWORDS = inspect.signature(load).parameters.keys() - {"name_or_folder", "progress"}


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string with words in it, docstrings left out; `{}` for values."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in skipped
        ):
            yield node.lineno, node.value


def unknown_names(source: str, options: set[str]) -> list[str]:
    """Options and arguments that messages of a source file name but that do not exist."""
    found = []
    for line, text in messages(source):
        if " " not in text or "var(--" in text:  # the names themselves; style sheets
            continue
        for option in OPTION.findall(text):
            other = OTHER_PROGRAMS.get(option)
            if option not in options and (other is None or other not in text):
                found.append(f"line {line}: {option}")
        found += [f"line {line}: {k}=" for k in KEYWORD.findall(text) if k not in KEYWORDS]
    return found


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=str)
def test_messages_name_options_that_exist(file: Path) -> None:
    options: set[str] = set().union(*VERBS.values())
    if file.is_relative_to(SOURCE / "models"):  # any verb that opens a model may print these
        options = set.intersection(*(VERBS[verb] for verb in MODEL_VERBS))
    assert unknown_names(file.read_text(encoding="utf-8"), options) == []


def one_sided_names(source: str) -> list[str]:
    """Arguments of `load` that a message names in one form only: "as base" or "base=" alone."""
    bare = re.compile(rf"\bas ({'|'.join(sorted(KEYWORDS))})\b(?!=)")
    return [
        f"line {line}: {name}"
        for line, text in messages(source)
        for name in (*bare.findall(text), *KEYWORD.findall(text))
        if option_name(name) not in text
    ]


@pytest.mark.parametrize("file", sorted((SOURCE / "models").rglob("*.py")), ids=str)
def test_checkpoint_messages_name_argument_and_option(file: Path) -> None:
    assert one_sided_names(file.read_text(encoding="utf-8")) == []


def test_one_sided_names_are_found() -> None:
    assert one_sided_names("raise E(f'{x}: give its folder as base')") == ["line 1: base"]
    assert one_sided_names("raise E('give device= instead')") == ["line 1: device"]
    assert one_sided_names("raise E('give base= (command line: --base)')") == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise E('give it as tower= please')", ["line 1: tower="]),
        ("raise E(f'{x}: give its folder as tower=')", ["line 1: tower="]),
        ("def f():\n '''Doc --gone.'''\n raise E(f'{x} needs --gone')", ["line 3: --gone"]),
        ("x = ('give base= '\n  '(command line: --bases)')", ["line 1: --bases"]),
        ("raise E('give base= (command line: --base), --load-4bit')", []),
        ("raise E(f'torchrun --nproc-per-node {n} here')", []),
        ("raise E('not here: --nproc-per-node')", ["line 1: --nproc-per-node"]),
    ],
)
def test_the_scan_finds_names_that_do_not_exist(source: str, expected: list[str]) -> None:
    assert unknown_names(source, VERBS["ask"]) == expected


def test_every_argument_of_load_is_an_option_of_every_verb_that_opens_a_model() -> None:
    wanted = {option_name(keyword) for keyword in KEYWORDS} | {"--model"}
    assert {"ask", "chat", "serve", "worker", "web", "bench", "eval shapes"} <= set(MODEL_VERBS)
    assert {verb: wanted - VERBS[verb] for verb in MODEL_VERBS if wanted - VERBS[verb]} == {}


def test_verbs_that_read_a_checkpoint_take_base_and_tower() -> None:
    for verb in ("convert", "train", "data check", "data view"):
        assert {"--base", "--vision-tower"} <= VERBS[verb], verb


def test_options_reach_load_and_other_processes() -> None:
    given: dict[str, Any] = dict.fromkeys(KEYWORDS, "x") | {
        "quantization": "4bit",
        "merge_adapter": False,
    }
    fields = {**given, "no_merge_adapter": True}
    del fields["merge_adapter"]
    options = ModelOptions(**fields)
    assert options.keywords() == given
    command = typer.main.get_command(app).commands["worker"]  # type: ignore[attr-defined]
    parsed = command.make_context("worker", options.arguments()).params
    assert {name: parsed[name] for name in fields} == fields
    assert ModelOptions().keywords() == {} and ModelOptions().arguments() == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serve", "--check", "--models", "a/b,c/d", "--revision", "v1"], "--revision belongs to"),
        (["worker", "--check", "--models", "a/b,c/d", "--revision", "v1"], "--revision belongs to"),
        (["web", "--check", "--models", "a/b,c/d", "--revision", "v1"], "--revision belongs to"),
        (["serve", "--check", "--models", "default,a/b", "--base", "x"], "--base applies to all"),
        (
            ["web", "--check", "--controller", "http://127.0.0.1:1", "--vision-tower", "x"],
            "--vision-tower is for a model loaded here",
        ),
        (["data", "check", "ROWS", "--vision-tower", "x"], "--vision-tower needs --model"),
        (
            ["bench", "--random", "tiny", "--vision-tower", "x"],
            "cannot be combined with --vision-tower",
        ),
    ],
)
def test_options_without_effect_are_refused(
    program: Any, tmp_path: Path, argv: list[str], message: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "1", "conversations": []}\n', encoding="utf-8")
    ran = program(*(str(rows) if word == "ROWS" else word for word in argv))
    assert ran.code == 2 and message in ran.err


@pytest.mark.parametrize("verb", ["serve", "worker"])
def test_options_may_apply_to_several_models(program: Any, verb: str) -> None:
    ran = program(verb, "--check", "--models", "a/b,c/d", "--base", "x", "--vision-tower", "y")
    assert ran.code == 0, ran.err


def test_serve_passes_model_options_to_its_workers() -> None:
    from vip_llava.cli.serve_models import worker_arguments
    from vip_llava.serving.settings import make_settings

    found = worker_arguments(ModelOptions(vision_tower="owner/tower", base="b"), make_settings())
    assert found[found.index("--vision-tower") + 1] == "owner/tower"
    assert found[found.index("--base") + 1] == "b"


def test_train_takes_base_and_vision_tower(program: Any) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "vicuna-7b" / "stage2.yaml"
    tower = "google/siglip-base-patch16-224"  # a plan needs a tower whose sizes are known
    options = ("--vision-tower", tower, "--base", "owner/vicuna-7b")
    ran = program("train", recipe, *options, "--dry-run")
    assert ran.code == 0, ran.err
    model = json.loads(ran.out)["recipe"]["model"]
    assert (model["tower"], model["base"]) == (tower, "owner/vicuna-7b")
