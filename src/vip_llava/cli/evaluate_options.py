"""Options of `vip-llava eval NAME`: what is asked, how it is run, what is written. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from vip_llava.errors import RequestError

__all__ = ["QuestionOptions", "RunOptions", "WriteOptions"]


def _option(panel: str, *flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionOptions:
    """Which questions are asked, and how things are marked."""

    groups: Annotated[
        list[str] | None,
        _option(
            "Questions",
            "--groups",
            "--variants",
            metavar="NAME,...",
            text="Which parts to ask (repeatable; all if not given).",
        ),
    ] = None
    most: Annotated[
        int | None,
        _option("Questions", "--most", metavar="N", min=1, text="At most N questions a group."),
    ] = None
    everything: Annotated[
        bool,
        _option("Questions", "--all", text="Also photos that the default model was trained on."),
    ] = False
    images: Annotated[
        Path | None,
        _option(
            "Questions",
            "--images",
            "--image-folder",
            metavar="DIR",
            text="The images, if elsewhere.",
        ),
    ] = None
    question: Annotated[
        str | None,
        _option(
            "Questions",
            "--question",
            metavar="TEXT",
            text='For shapes and recognition, instead of "What is <region:1>?".',
        ),
    ] = None
    seed: Annotated[
        int, _option("Questions", "--seed", metavar="N", text="Of all that is drawn by lot.")
    ] = 0
    alpha: Annotated[
        int,
        _option("Questions", "--alpha", metavar="0..255", min=0, max=255, text="Opacity of marks."),
    ] = 128

    def names(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """The groups that were named. Raises RequestError for one that is not known."""
        given = self.groups or ()
        names = [part.strip() for text in given for part in text.split(",") if part.strip()]
        if any(part not in known for part in names) or (given and not names):
            listed = ", ".join(known) or "none"
            raise RequestError(f"--groups {' '.join(given)}: known are {listed}")
        return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run goes."""

    batch_size: Annotated[
        int,
        _option("Run", "--batch-size", metavar="N", min=1, text="Questions that run together."),
    ] = 8
    max_failed: Annotated[
        float,
        _option(
            "Run",
            "--max-failed",
            metavar="SHARE|N",
            min=0,
            text="How many questions may fail before the run stops: a share below 1, or a number.",
        ),
    ] = 0.05
    weights: Annotated[
        Path | None,
        _option(
            "Run", "--weights", metavar="DIR", text="Trained parts to put into the default model."
        ),
    ] = None

    @property
    def limit(self) -> int | float:
        """A whole number of failures, or a share below 1."""
        return int(self.max_failed) if self.max_failed >= 1 else self.max_failed


@dataclasses.dataclass(frozen=True, slots=True)
class WriteOptions:
    """What is kept of a run."""

    output: Annotated[
        Path | None,
        _option(
            "Output",
            "--output",
            "-o",
            metavar="RUN",
            text="Folder of the run: rows, answers, scores. A run that was stopped goes on there.",
        ),
    ] = None
    json_file: Annotated[
        Path | None,
        _option("Output", "--json", metavar="FILE", text="Write scores and all answers as JSON."),
    ] = None
    html_file: Annotated[
        Path | None,
        _option("Output", "--html", metavar="FILE", text="Write a page with charts and images."),
    ] = None

    def check(self) -> None:
        """RequestError where a file's folder does not exist."""
        for target in (self.json_file, self.html_file):
            if target is not None and not target.absolute().parent.is_dir():
                raise RequestError(f"{target}: there is no folder {target.absolute().parent}")
