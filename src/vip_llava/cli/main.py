"""The program `vip-llava`: its verbs, its exit codes, and how errors are told.

Exit codes: 0 done, 1 something failed, 2 the user has to change something, 130 stopped with Ctrl-C.
Verbs are imported here, but nothing heavy is: each verb loads what it needs when it runs.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vip_llava
from vip_llava.cli.ask import EPILOG as ASK_EPILOG
from vip_llava.cli.ask import ask
from vip_llava.cli.bench import EPILOG as BENCH_EPILOG
from vip_llava.cli.bench import bench
from vip_llava.cli.chat import EPILOG as CHAT_EPILOG
from vip_llava.cli.chat import chat
from vip_llava.cli.controller import EPILOG as CONTROLLER_EPILOG
from vip_llava.cli.controller import controller
from vip_llava.cli.convert import EPILOG as CONVERT_EPILOG
from vip_llava.cli.convert import convert
from vip_llava.cli.data import CHECK_EPILOG, VIEW_EPILOG, check, view
from vip_llava.cli.data import CONVERT_EPILOG as DATA_CONVERT_EPILOG
from vip_llava.cli.data import convert as convert_data
from vip_llava.cli.draw import EPILOG as DRAW_EPILOG
from vip_llava.cli.draw import draw
from vip_llava.cli.evaluate import ABOUT as BENCHMARKS
from vip_llava.cli.evaluate import EvalGroup, benchmark_verb
from vip_llava.cli.evaluate import epilog as eval_epilog
from vip_llava.cli.evaluate_judge import JUDGE_EPILOG
from vip_llava.cli.evaluate_judge import judge as eval_judge
from vip_llava.cli.evaluate_report import REPORT_EPILOG
from vip_llava.cli.evaluate_report import report as eval_report
from vip_llava.cli.option_groups import OrderedCommand, grouped
from vip_llava.cli.models import EPILOG as MODELS_EPILOG
from vip_llava.cli.models import models
from vip_llava.cli.serve import EPILOG as SERVE_EPILOG
from vip_llava.cli.serve import serve
from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.train import EPILOG as TRAIN_EPILOG
from vip_llava.cli.train import train
from vip_llava.cli.web import EPILOG as WEB_EPILOG
from vip_llava.cli.web import web
from vip_llava.cli.worker import EPILOG as WORKER_EPILOG
from vip_llava.cli.worker import worker
from vip_llava.errors import DownloadError, MissingExtraError, VipLlavaError

__all__ = ["VERBS", "app", "main"]

USAGE_EXIT, FAILURE_EXIT, INTERRUPT_EXIT = 2, 1, 130

#: Verb -> (function, examples shown under its help), in the order of the help page. Two words are
#: a group and a verb of it.
VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "ask": (ask, ASK_EPILOG),
    "chat": (chat, CHAT_EPILOG),
    "draw": (draw, DRAW_EPILOG),
    "serve": (serve, SERVE_EPILOG),
    "controller": (controller, CONTROLLER_EPILOG),
    "worker": (worker, WORKER_EPILOG),
    "web": (web, WEB_EPILOG),
    "models": (models, MODELS_EPILOG),
    "convert": (convert, CONVERT_EPILOG),
    **{f"eval {name}": (benchmark_verb(name), eval_epilog(name)) for name in BENCHMARKS},
    "eval judge": (eval_judge, JUDGE_EPILOG),
    "eval report": (eval_report, REPORT_EPILOG),
    "train": (train, TRAIN_EPILOG),
    "bench": (bench, BENCH_EPILOG),
    "data check": (check, CHECK_EPILOG),
    "data view": (view, VIEW_EPILOG),
    "data convert": (convert_data, DATA_CONVERT_EPILOG),
}
GROUPS = {
    "data": "Check data files, look at their rows, make them of public data sets.",
    "eval": "Score models on benchmarks; without a name (eval --data DIR) on marked things.",
}
GROUP_CLASSES: dict[str, type[TyperGroup]] = {"eval": EvalGroup}
#: Verbs that do something sensible when nothing more is typed.
WITHOUT_ARGUMENTS = frozenset({"models", "serve", "controller", "worker", "web"})

# typer keeps its copy of click private, but shows the root of its errors through this public one.
USAGE_ERROR = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="vip-llava",
    help="Point at something in an image and ask about it.",
    epilog='Start with: vip-llava ask photo.jpg "What is <region:1>?" --box 100,80,260,300',
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"vip-llava {vip_llava.__version__}\n")
        raise typer.Exit()


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: DebugFlag = False,
) -> None:
    """Point at something in an image and ask about it."""


def _paragraphs(verb: Callable[..., None]) -> str:
    """The verb's docstring with one line a paragraph: the help breaks lines as the terminal is wide."""
    text = inspect.cleandoc(verb.__doc__ or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


_homes = {"": app}
for _group, _about in GROUPS.items():
    _class = GROUP_CLASSES.get(_group, TyperGroup)
    _homes[_group] = typer.Typer(no_args_is_help=True, cls=_class)
    app.add_typer(_homes[_group], name=_group, help=_about)

for _name, (_verb, _epilog) in VERBS.items():
    _group, _, _short = _name.rpartition(" ")
    _homes[_group].command(
        _short,
        cls=OrderedCommand,
        help=_paragraphs(_verb),
        epilog=_epilog,
        no_args_is_help=_name not in WITHOUT_ARGUMENTS,
    )(grouped(_verb))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: those of the process) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    state: dict[str, Any] = {"argv": arguments}
    try:
        command = typer.main.get_command(app)
        code = command.main(arguments, prog_name="vip-llava", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return _closed_pipe()
    except SystemExit as stop:  # typer ends this way when it meets a closed pipe itself
        return stop.code if isinstance(stop.code, int) else FAILURE_EXIT
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        return _told(error, debug=bool(state.get("debug")))


def _told(error: Exception, *, debug: bool) -> int:
    """Tell the person what went wrong; the exit code that fits."""
    from vip_llava.cli.terminal import error_line

    if isinstance(error, USAGE_ERROR):
        return _usage(error)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, VipLlavaError):
        error_line(str(error))
        failed = isinstance(error, DownloadError | MissingExtraError)
        return FAILURE_EXIT if failed else USAGE_EXIT
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        error_line(f"{place}{error.strerror}")
        return FAILURE_EXIT
    first = (str(error).strip().splitlines() or ["no message"])[0]
    hint = "" if debug else " (--debug shows where)"
    error_line(f"{type(error).__name__}: {first}{hint}")
    return FAILURE_EXIT


def _usage(error: Any) -> int:
    """A command line that can't be read: what is wrong, and where help is."""
    from vip_llava.cli.terminal import error_line

    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stdout.write(f"{error.format_message()}\n")
        return USAGE_EXIT
    # typer puts a word of its own validator before what the person needs to know.
    error_line(error.format_message().replace(": Value error, ", ": "))
    path = context.command_path if context is not None else "vip-llava"
    sys.stderr.write(f"Try: {path} --help\n")
    return int(getattr(error, "exit_code", USAGE_EXIT))


def _interrupted() -> int:
    sys.stderr.write("\n")
    return INTERRUPT_EXIT


def _closed_pipe() -> int:
    """The reader of stdout has gone; say nothing, also not when Python closes stdout at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILURE_EXIT
