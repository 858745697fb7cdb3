"""The program `vip-llava`: its verbs, its exit codes, and how it reports errors.

Exit codes: 0 success, 1 failure, 2 the user has to change something, 130 stopped with Ctrl-C.
The verbs are imported here, but nothing heavy: each verb imports what it needs when it runs.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

import vip_llava
from vip_llava.cli import (
    ask,
    bench,
    chat,
    controller,
    convert,
    data,
    draw,
    evaluate,
    evaluate_judge,
    evaluate_report,
    models,
    serve,
    train,
    web,
    worker,
)
from vip_llava.cli.legacy_options import LEGACY_ALIASES
from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.option_groups import OrderedCommand, grouped
from vip_llava.errors import DownloadError, MissingExtraError, VipLlavaError

__all__ = ["PANELS", "VERBS", "app", "main", "make_app"]

USAGE_EXIT, FAILURE_EXIT, INTERRUPT_EXIT = 2, 1, 130

#: Verb -> (function, examples shown under its help). Two words are a group and a verb in it.
VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "ask": (ask.ask, ask.EPILOG),
    "chat": (chat.chat, chat.EPILOG),
    "draw": (draw.draw, draw.EPILOG),
    "serve": (serve.serve, serve.EPILOG),
    "web": (web.web, web.EPILOG),
    "controller": (controller.controller, controller.EPILOG),
    "worker": (worker.worker, worker.EPILOG),
    "models": (models.models, models.EPILOG),
    "convert": (convert.convert, convert.EPILOG),
    "bench": (bench.bench, bench.EPILOG),
    "data check": (data.check, data.CHECK_EPILOG),
    "data view": (data.view, data.VIEW_EPILOG),
    "data convert": (data.convert, data.CONVERT_EPILOG),
    "train": (train.train, train.EPILOG),
    **{
        f"eval {name}": (evaluate.benchmark_verb(name), evaluate.epilog(name))
        for name in evaluate.BENCHMARKS
    },
    "eval judge": (evaluate_judge.judge, evaluate_judge.JUDGE_EPILOG),
    "eval report": (evaluate_report.report, evaluate_report.REPORT_EPILOG),
}
BENCHMARK_VERBS = {f"eval {name}" for name in evaluate.BENCHMARKS}
#: Heading of the help page -> its verbs and groups.
PANELS = {
    "Ask and draw": ("ask", "chat", "draw"),
    "Serve": ("serve", "web", "controller", "worker"),
    "Models": ("models", "convert", "bench"),
    "Train and evaluate": ("data", "train", "eval"),
}
GROUPS = {
    "data": "Check data files, look at their rows, convert public data sets.",
    "eval": "Score models on benchmarks, grade open answers, report runs.",
}
#: Verbs that run without any argument; the others then show their help.
WITHOUT_ARGUMENTS = frozenset({"models", "serve", "controller", "worker", "web"})

# typer does not export the root of its usage errors; this public error inherits from it.
USAGE_ERROR = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Command(OrderedCommand):
    """A verb; it also accepts the original's names of options."""

    aliases = LEGACY_ALIASES


class _BenchmarkCommand(evaluate.BenchmarkHelp, _Command):  # type: ignore[misc]  # a lazy help
    """A verb whose help is that of a benchmark."""


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"vip-llava {vip_llava.__version__}\n")
        raise typer.Exit()


def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: DebugFlag = False,
) -> None:
    """Point at something in an image and ask about it."""


def _paragraphs(verb: Callable[..., None]) -> str:
    """The verb's docstring with one line per paragraph, so that help wraps at any width."""
    text = inspect.cleandoc(verb.__doc__ or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def make_app(verbs: Mapping[str, tuple[Callable[..., None], str]]) -> typer.Typer:
    """The program with these verbs, which have the form of `VERBS`."""
    app = typer.Typer(
        name="vip-llava",
        help="Point at something in an image and ask about it.",
        epilog='Start with: vip-llava ask photo.jpg "What is <region:1>?" --box 100,80,260,300',
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_program)
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    groups: dict[str, typer.Typer] = {"": app}
    for name, (verb, epilog) in verbs.items():
        group, _, short = name.rpartition(" ")
        if group not in groups:
            groups[group] = typer.Typer(no_args_is_help=True)
            about, panel = GROUPS[group], panel_of[group]
            app.add_typer(groups[group], name=group, help=about, rich_help_panel=panel)
        groups[group].command(
            short,
            cls=_BenchmarkCommand if name in BENCHMARK_VERBS else _Command,
            help=_paragraphs(verb),
            epilog=epilog,
            no_args_is_help=name not in WITHOUT_ARGUMENTS,
            rich_help_panel=None if group else panel_of.get(name),
        )(grouped(verb))
    return app


app = make_app(VERBS)


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
        # The reader of stdout is gone. Python flushes stdout again when it exits: into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE_EXIT
    except SystemExit as stop:  # typer raises it for a closed pipe
        return stop.code if isinstance(stop.code, int) else FAILURE_EXIT
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\n")
        return INTERRUPT_EXIT
    except Exception as error:
        return _report(error, debug=bool(state.get("debug")))


def _report(error: Exception, *, debug: bool) -> int:
    """Write the error to stderr and return its exit code."""
    from vip_llava.cli.terminal import error_line

    if isinstance(error, USAGE_ERROR):
        return _report_usage(error)
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


def _report_usage(error: Any) -> int:
    """Report a command line that can't be parsed, and name the verb's help."""
    from vip_llava.cli.terminal import error_line

    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stdout.write(f"{error.format_message()}\n")
        return USAGE_EXIT
    # pydantic's prefix says nothing to the user.
    error_line(error.format_message().replace(": Value error, ", ": "))
    path = context.command_path if context is not None else "vip-llava"
    sys.stderr.write(f"Try: {path} --help\n")
    return int(getattr(error, "exit_code", USAGE_EXIT))
