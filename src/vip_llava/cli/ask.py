"""`vip-llava ask`: one photo, one question, one answer on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.legacy_options import LEGACY_PANEL, LegacyOptions
from vip_llava.cli.region_options import RegionOptions
from vip_llava.cli.inputs import (
    check_target,
    check_wording,
    mark,
    open_assistant,
    question_from,
    save_image,
)
from vip_llava.cli.model_options import DebugFlag, ModelOptions, SamplingOptions, photo_and_question
from vip_llava.cli.terminal import note, write_answer
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.prompting.turns import MarkedImage

__all__ = ["EPILOG", "ask"]

EPILOG = """Examples

  vip-llava ask photo.jpg "What is <region:1>?" --box 100,80,260,300

  vip-llava ask photo.jpg "Is <region:1> above <region:2>?" --box 10,10,90,90 --color blue --point 200,150

  vip-llava ask photo.jpg "What is this?" --arrow 0.1,0.1,0.5,0.5 --unit --save drawn.png

  vip-llava ask photo.jpg "Describe <region:1>." --mask mask.png --json

  vip-llava ask --model-path FOLDER --image-file photo.jpg --query "What is it?" --bbox 100,80,260,300 --shape arrow
"""


def ask(
    ctx: typer.Context,
    *,
    photo: Annotated[
        str | None, typer.Argument(metavar="PHOTO", help="The photo; - reads it from stdin.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="The question; <region:1> means the first region."),
    ] = None,
    regions: RegionOptions,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Write the drawn image here."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print everything the answer tells as JSON."),
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Print words as they come (the default in a terminal)."
        ),
    ] = None,
    model: ModelOptions,
    sampling: SamplingOptions,
    legacy: LegacyOptions,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="TEXT", help="The question.", rich_help_panel=LEGACY_PANEL),
    ] = None,
    debug: DebugFlag = False,
) -> None:
    """Ask about a photo and the regions marked on it.

    Mark regions with --box, --arrow, --mask and the others. They get the ids 1, 2, ... in the order
    in which you type them, and <region:1> in the question becomes words like "within the red
    rectangle". The answer, and nothing else, goes to stdout.
    """
    photo, question = photo_and_question(photo, question, legacy.image_file, query)
    if save == "-":
        raise RequestError("--save -: stdout is for the answer; name a file, or use vip-llava draw")
    check_target(save, photo)
    text = question_from(question, stdin_allowed=photo != "-")
    marked, notes = mark(ctx, photo, regions, legacy)
    check_wording(text, marked.regions)
    if save is not None:
        save_image(marked.shown, save)
    _answer(marked, notes, text, model, sampling, as_json=as_json, stream=stream, saved=save)


def _answer(
    marked: MarkedImage,
    notes: Sequence[str],
    question: str,
    model: ModelOptions,
    sampling: SamplingOptions,
    *,
    as_json: bool,
    stream: bool | None,
    saved: str | None,
) -> None:
    keywords: dict[str, Any] = sampling.keywords()
    assistant = open_assistant(model, keywords)
    if as_json:
        answer = assistant.ask(marked, question, **keywords)
        content = answer.to_json()
        content["notes"] = [*notes, *answer.notes]
        if saved is not None:
            content["saved"] = saved
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    with assistant.stream(marked, question, **keywords) as pieces:
        show = stream if stream is not None else sys.stdout.isatty()
        for piece in pieces:
            if show:
                write_answer(piece)
        answer = pieces.answer
    write_answer("" if show else answer.text, end="\n")
    for text in answer.notes:
        note(text)
