"""What the terminal shows besides answers: notes, errors, progress. All of it goes to stderr.

stdout carries nothing but the answer, so that pipes work. Colours follow the terminal and NO_COLOR
(rich does both). Text that comes from a model or a file is printed as it is, never read as markup.
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

# Everything that could move a cursor or rename a window, but not the line feed and the tab.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Seconds between lines of progress where nobody watches.
_LINE_EVERY = 60


def stderr() -> Console:
    """A console on the current stderr; made anew each time so that a redirected one is found."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line of information for the person, on stderr."""
    from rich.text import Text

    stderr().print(Text(f"vip-llava: {text}", style="dim"))


def error_line(text: str) -> None:
    """An error on stderr, as `vip-llava: error: ...`."""
    from rich.text import Text

    stderr().print(Text.assemble(("vip-llava: error: ", "bold red"), printable(text)))


def printable(text: str) -> str:
    """`text` without control characters, safe to show in a terminal."""
    return CONTROL.sub("", text)


def write_answer(piece: str, *, end: str = "") -> None:
    """A piece of an answer on stdout, at once."""
    sys.stdout.write((printable(piece) if sys.stdout.isatty() else piece) + end)
    sys.stdout.flush()


@contextlib.contextmanager
def loading(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of getting and opening a model, on stderr.

    Yields `progress(stage, done, total)`; the numbers are bytes or items. Where stderr is no
    terminal each stage is one line and there is no bar.
    """
    console = stderr()
    _quiet_libraries()
    if not console.is_terminal:
        yield _Lines(console, what)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)

        def move(stage: str, done: int, total: int) -> None:
            shown.update(
                task, description=printable(stage), completed=done, total=total if total else None
            )

        yield move


@contextlib.contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of long work on stderr; `unit` is what is counted, like "rows".

    Yields `progress(done, total)`; a total of 0 is not known. Where stderr is no terminal, a line
    is written about every minute.
    """
    console = stderr()
    if not console.is_terminal:
        yield _Counted(console, what, unit)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f} " + unit, markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(printable(what), total=None)

        def move(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total if total else None)

        yield move


class _Lines:
    """Progress where nobody watches: each new stage once."""

    def __init__(self, console: Console, what: str) -> None:
        self.console = console
        self.last = ""
        self(what, 0, 0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage and stage != self.last:
            self.last = stage
            self.console.print(printable(f"vip-llava: {stage}"), markup=False)


class _Counted:
    """The same for what is counted: a line a minute, so that a log shows that it goes on."""

    def __init__(self, console: Console, what: str, unit: str) -> None:
        self.console, self.what, self.unit = console, what, unit
        self.began = self.told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.told < _LINE_EVERY:
            return
        self.told = now
        of = f" of {total}" if total else ""
        passed = f"{(now - self.began) / 60:.0f} min"
        text = f"vip-llava: {self.what}: {done}{of} {self.unit} in {passed}"
        self.console.print(printable(text), markup=False)


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal; errors still get through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
