"""Options of `vip-llava eval NAME`: what to ask, how to run it, what to write.

It imports nothing that is slow to import.
"""

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
    """Which questions to ask, and how to mark objects."""

    groups: Annotated[
        list[str] | None,
        _option(
            "Questions",
            "--groups",
            "--variants",
            metavar="NAME,...",
            text="Groups of questions to ask (repeatable; default: all).",
        ),
    ] = None
    limit: Annotated[
        int | None,
        _option("Questions", "--limit", metavar="N", min=1, text="At most N questions per group."),
    ] = None
    all_photos: Annotated[
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
            text="Folder of the images, if they are not beside the data.",
        ),
    ] = None
    question: Annotated[
        str | None,
        _option(
            "Questions",
            "--question",
            metavar="TEXT",
            text='For shapes and recognition: replaces "What is <region:1>?".',
        ),
    ] = None
    seed: Annotated[
        int, _option("Questions", "--seed", metavar="N", text="Seed of all random choices.")
    ] = 0
    alpha: Annotated[
        int,
        _option("Questions", "--alpha", metavar="0..255", min=0, max=255, text="Opacity of marks."),
    ] = 128

    def names(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """The groups that were given. Raises RequestError for an unknown one."""
        given = self.groups or ()
        names = [part.strip() for text in given for part in text.split(",") if part.strip()]
        if any(part not in known for part in names) or (given and not names):
            listed = ", ".join(known) or "none"
            raise RequestError(f"--groups {' '.join(given)}: the groups are {listed}")
        return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run it."""

    batch_size: Annotated[
        int,
        _option("Run", "--batch-size", metavar="N", min=1, text="Questions per batch."),
    ] = 8
    max_failed: Annotated[
        float,
        _option(
            "Run",
            "--max-failed",
            metavar="N",
            min=0,
            text="Failed questions that end the run if exceeded: a count, or a fraction below 1.",
        ),
    ] = 0.05
    weights: Annotated[
        Path | None,
        _option(
            "Run",
            "--weights",
            metavar="DIR",
            text="Trained weights to load into the default model.",
        ),
    ] = None

    @property
    def max_failed_rows(self) -> int | float:
        """A count, or a fraction below 1."""
        return int(self.max_failed) if self.max_failed >= 1 else self.max_failed


@dataclasses.dataclass(frozen=True, slots=True)
class WriteOptions:
    """What to write."""

    output: Annotated[
        Path | None,
        _option(
            "Output",
            "--output",
            "-o",
            metavar="RUN",
            text="Directory for rows, answers and scores; resumes an interrupted run there.",
        ),
    ] = None
    json_file: Annotated[
        Path | None,
        _option(
            "Output", "--json", metavar="FILE", text="Write the scores and all answers as JSON."
        ),
    ] = None
    html_file: Annotated[
        Path | None,
        _option(
            "Output", "--html", metavar="FILE", text="Write an HTML page with charts and images."
        ),
    ] = None

    def check(self) -> None:
        """Raises RequestError if the folder of a file does not exist."""
        for target in (self.json_file, self.html_file):
            if target is not None and not target.absolute().parent.is_dir():
                raise RequestError(
                    f"{target}: the folder {target.absolute().parent} does not exist"
                )
