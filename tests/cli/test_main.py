"""The program as a whole: help, exit codes, pipes, start-up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vip_llava
from vip_llava.cli import main as program_module
from vip_llava.cli.main import PANELS, VERBS, app, make_app
from vip_llava.cli.model_options import ModelOptions
from vip_llava.errors import CheckpointError, DownloadError, ImageError, MissingExtraError

Program = Callable[..., Any]


def test_help_lists_every_verb() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(f" {verb.split()[0]} " in shown.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_help_has_examples(verb: str) -> None:
    shown = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
        app, [*verb.split(), "--help"]
    )
    assert shown.exit_code == 0
    assert "Examples" in shown.stdout and f"vip-llava {verb} " in shown.stdout


@pytest.mark.parametrize("verb", ["ask", "draw", "chat"])
def test_help_lists_every_shape_and_flag(verb: str) -> None:
    shown = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [verb, "--help"]).stdout
    wanted = "box ellipse triangle point arrow scribble contour mask regions unit color alpha width"
    legacy = "image-file bbox seg shape rgb"
    if verb != "draw":
        legacy += " model base temperature max-new-tokens load-4bit load-8bit device"
    assert [name for name in f"{wanted} {legacy}".split() if f"--{name}" not in shown] == []


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_fits_80_columns(verb: str) -> None:
    """No option name is cut off, and examples stand on one line, but for the judge's long ones."""
    environment = {"COLUMNS": "80", "NO_COLOR": "1"}
    lines = CliRunner(env=environment).invoke(app, [*verb.split(), "--help"]).stdout.splitlines()
    examples = [line.strip() for line in VERBS[verb][1].splitlines() if "vip-llava" in line]
    shown = [line.strip() for line in lines]
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line] == []
    if verb != "eval judge":  # two required options, one of them a URL
        assert [example for example in examples if example not in shown] == []


def test_help_groups_the_verbs() -> None:
    shown = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["--help"]).stdout
    names = [name for names in PANELS.values() for name in names]
    places = [shown.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert sorted(names) == sorted({verb.split()[0] for verb in VERBS})


def test_a_verb_is_a_function_and_a_line_in_the_table() -> None:
    """CONTRIBUTING.md, "a verb": option groups and help come with it."""

    def size(*, width: int = 3, model: ModelOptions) -> None:
        """Print a size."""
        sys.stdout.write(f"{width} {model.keywords()}\n")

    extended = make_app({**VERBS, "size": (size, "Examples\n\n  vip-llava size --width 9\n")})
    ran = CliRunner().invoke(extended, ["size", "--width", "9", "--device", "cpu"])
    assert ran.stdout == "9 {'device': 'cpu'}\n"
    shown = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(extended, ["size", "--help"])
    assert "Print a size." in shown.stdout and "vip-llava size --width 9" in shown.stdout


def test_no_arguments_show_the_help(program: Program) -> None:
    assert "Usage: vip-llava" in program().out


def test_the_version(program: Program) -> None:
    ran = program("--version")
    assert (ran.code, ran.out) == (0, f"vip-llava {vip_llava.__version__}\n")


def test_an_unknown_verb_is_a_usage_error(program: Program) -> None:
    ran = program("drew")
    assert ran.code == 2 and "Did you mean 'draw'" in ran.err


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ImageError("photo.jpg: broken"), 2, "photo.jpg: broken"),
        (CheckpointError("no weights"), 2, "no weights"),
        (DownloadError("no network"), 1, "no network"),
        (MissingExtraError("install vip-llava[quant]"), 1, "vip-llava[quant]"),
        (FileNotFoundError(2, "No such file", "x.png"), 1, "x.png: No such file"),
        (RuntimeError("out of memory\nlong story"), 1, "RuntimeError: out of memory (--debug"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    program: Program,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    printed: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vip_llava.cli.draw.mark", fail)
    ran = program("draw", photo, "--json")
    assert ran.code == code and printed in ran.err
    assert "Traceback" not in ran.err and "long story" not in ran.err


@pytest.mark.parametrize(
    "argv", [["draw", "--debug", "none.png", "--json"], ["--debug", "draw", "none.png", "--json"]]
)
def test_debug_shows_the_traceback(program: Program, argv: list[str]) -> None:
    ran = program(*argv)
    assert ran.code == 2
    assert "Traceback" in ran.err and "vip-llava: error: none.png" in ran.err


def test_messages_are_never_markup(program: Program) -> None:
    ran = program("draw", "[red]no[/red].png", "--json")
    assert "[red]no[/red].png: no such photo" in ran.err


def test_python_m_vip_llava(vip_llava: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    done = vip_llava("draw", photo, "--box", "5,5,40,30", "--save", tmp_path / "o.png")
    assert (done.returncode, done.stdout) == (0, b"") and (tmp_path / "o.png").is_file()


def test_ctrl_c_while_the_command_line_is_imported(child_environment: dict[str, str]) -> None:
    code = (
        "import builtins, sys; keep = builtins.__import__\n"
        "def importing(name, *rest):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return keep(name, *rest)\n"
        "builtins.__import__ = importing\n"
        "from vip_llava.__main__ import run; sys.exit(run())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (130, b"")


def test_the_installed_program_starts_inside_the_guard() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vip-llava": "vip_llava.__main__:run"}


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_text_wraps_to_the_terminal(verb: str) -> None:
    """The line breaks of a docstring are not those of the help."""
    shown = (
        CliRunner(env={"COLUMNS": "600", "NO_COLOR": "1"})
        .invoke(app, [*verb.split(), "--help"])
        .stdout
    )
    for paragraph in (VERBS[verb][0].__doc__ or "").strip().split("\n\n"):
        assert " ".join(paragraph.split()) in shown


def test_a_wrong_choice_lists_the_choices(program: Program, tmp_path: Path) -> None:
    ran = program("convert", tmp_path, tmp_path / "new", "--to", "xx")
    assert ran.code == 2 and "'xx' is not one of 'hf', 'original'" in ran.err
    assert "Value error" not in ran.err


def test_a_closed_pipe_is_silent(child_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "vip_llava", "models", "--json"]
    child = subprocess.Popen(
        command, env=child_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait() != 0 and errors == b""


def test_ctrl_c_ends_with_130(child_environment: dict[str, str]) -> None:
    import os
    import signal

    # The photo never comes, so the program waits on its stdin.
    command = [sys.executable, "-m", "vip_llava", "draw", "-", "--box", "1,1,9,9", "--json"]
    reader, writer = os.pipe()
    with subprocess.Popen(
        command,
        env=child_environment,
        stdin=reader,
        stderr=subprocess.PIPE,
        # Where the tests themselves run in the background, Ctrl-C is ignored and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        try:
            time.sleep(3)
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == 130
        finally:
            child.kill()
        assert child.stderr is not None and b"Traceback" not in child.stderr.read()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["ask", "--help"],
        ["models", "--json"],
        ["draw", "{photo}", "--box", "1,1,9,9", "--json"],
    ],
)
def test_verbs_without_a_model_do_not_import_torch(
    child_environment: dict[str, str], photo: Path, argv: list[str]
) -> None:
    code = (
        "import sys; from vip_llava.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    argv = [item.format(photo=photo) for item in argv]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], env=child_environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_starts_fast(child_environment: dict[str, str]) -> None:
    """0.3 s on an idle machine; the best of three runs, since test machines are busy."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vip_llava", "--help"],
            env=child_environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.5


def test_no_color_is_respected(program: Program) -> None:
    assert "\x1b[" not in program("draw", "none.png", "--json").err
    assert program_module.USAGE_EXIT == 2
