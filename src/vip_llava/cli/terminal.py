"""Writes what the terminal shows besides answers - notes, errors, progress - to stderr.

stdout carries only the answer, so that pipes work. rich handles colours and NO_COLOR. Text from a
model or a file is printed as it is, never read as markup.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["counting", "error_line", "loading", "note", "printable", "stderr", "write_answer"]

# All characters that could move a cursor or rename a window; line feed and tab stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Seconds between progress lines in a log.
_LINE_EVERY = 60


def stderr() -> Console:
    """A console on the current stderr, which may have been redirected since the last call."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Write one line of information to stderr."""
    from rich.text import Text

    stderr().print(Text(f"vip-llava: {text}", style="dim"))


def error_line(text: str) -> None:
    """Write an error to stderr as `vip-llava: error: ...`."""
    from rich.text import Text

    stderr().print(Text.assemble(("vip-llava: error: ", "bold red"), printable(text)))


def printable(text: str) -> str:
    """`text` without control characters, safe to show in a terminal."""
    return CONTROL.sub("", text)


def write_answer(piece: str, *, end: str = "") -> None:
    """Write a piece of an answer to stdout and flush it."""
    sys.stdout.write((printable(piece) if sys.stdout.isatty() else piece) + end)
    sys.stdout.flush()


@contextlib.contextmanager
def loading(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of fetching and loading a model on stderr.

    Yields `progress(stage, done, total)` in bytes or items; a total of 0 is unknown. If stderr is
    not a terminal, each stage is one line.
    """
    _silence_libraries()
    console = stderr()
    if console.is_terminal:
        with _bar(console, what) as move:
            yield move
        return
    shown = ""

    def show_stage(stage: str, _done: int, _total: int) -> None:
        nonlocal shown
        if stage and stage != shown:
            shown = stage
            console.print(printable(f"vip-llava: {stage}"), markup=False)

    show_stage(what, 0, 0)
    yield show_stage


@contextlib.contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of long work on stderr; `unit` is what is counted, like "rows".

    Yields `progress(done, total)`; a total of 0 is unknown. If stderr is not a terminal, there is
    about one line a minute.
    """
    console = stderr()
    if console.is_terminal:
        with _bar(console, what, "{task.completed:.0f} " + unit) as move:
            yield lambda done, total: move(what, done, total)
        return
    start = shown = time.monotonic()

    def show_count(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < _LINE_EVERY:
            return
        shown = now
        count = f"{done} of {total}" if total else f"{done}"
        minutes = f"{(now - start) / 60:.0f} min"
        text = f"vip-llava: {what}: {count} {unit} in {minutes}"
        console.print(printable(text), markup=False)

    yield show_count


@contextlib.contextmanager
def _bar(console: Console, what: str, *columns: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar that disappears at the end; yields `move(text, done, total)`."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        *(TextColumn(column, markup=False) for column in columns),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(printable(what), total=None)

        def move(text: str, done: int, total: int) -> None:
            progress.update(task, description=printable(text), completed=done, total=total or None)

        yield move


def _silence_libraries() -> None:
    """Turn off the libraries' own progress bars and advice; errors still get through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
