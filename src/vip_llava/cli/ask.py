"""`vip-llava ask`: one photo, one question, one answer on stdout."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from vip_llava.cli.inputs import (
    PhotoArgument,
    check_target,
    mark,
    open_assistant,
    photo_and_question,
    question_from,
    save_image,
)
from vip_llava.cli.legacy_options import LEGACY_PANEL, LegacyOptions
from vip_llava.cli.model_options import DebugFlag, ModelOptions, SamplingOptions
from vip_llava.cli.region_options import RegionOptions
from vip_llava.cli.terminal import note, write_answer
from vip_llava.errors import RequestError

__all__ = ["EPILOG", "ask"]

EPILOG = """Examples

  vip-llava ask photo.jpg "What is <region:1>?" --box 100,80,260,300

  vip-llava ask photo.jpg "What is this?" --arrow 0.1,0.1,0.5,0.5 --unit

  vip-llava ask photo.jpg "What is this?" --color blue --point 200,150

  vip-llava ask photo.jpg "Describe <region:1>." --mask mask.png --json
"""


def ask(
    ctx: typer.Context,
    *,
    photo: PhotoArgument = None,
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="The question; <region:1> names a region."),
    ] = None,
    regions: RegionOptions,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Write the drawn image here."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as JSON: text, prompt, ...")
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Print text as it comes (default: terminals)."),
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

    Mark regions with --box, --arrow, --mask and the other shapes. They get the ids 1, 2, ... in the
    order in which you type them, and <region:1> in the question becomes words like "the object
    within the red rectangle". Only the answer goes to stdout.
    """
    from vip_llava.regions import expand

    photo, question = photo_and_question(photo, question, legacy.image_file, query)
    if save == "-":
        raise RequestError("--save -: stdout is for the answer; name a file, or use vip-llava draw")
    check_target(save, photo)
    text = question_from(question, stdin_allowed=photo != "-")
    marked, notes = mark(ctx, photo, regions, legacy)
    expand(text, marked.regions)  # reports an unknown <region:ID> before the model is loaded
    if save is not None:
        save_image(marked.shown, save)
    keywords = sampling.keywords()
    assistant = open_assistant(model, keywords)
    if as_json:
        answer = assistant.ask(marked, text, **keywords)
        content = answer.to_json() | {"notes": [*notes, *answer.notes]}
        if save is not None:
            content["saved"] = save
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    show = stream if stream is not None else sys.stdout.isatty()
    with assistant.stream(marked, text, **keywords) as pieces:
        for piece in pieces:
            if show:
                write_answer(piece)
        answer = pieces.answer
    write_answer("" if show else answer.text, end="\n")
    for each in answer.notes:
        note(each)
