"""`vip-llava chat`: a conversation about one photo; regions may be added on the way.

Lines come from the terminal or a pipe; a line that begins with `/` is a command of `ChatSession`.
Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from vip_llava.cli.chat_session import ChatSession
from vip_llava.cli.inputs import (
    check_target,
    mark,
    open_assistant,
    photo_and_question,
    save_image,
)
from vip_llava.cli.legacy_options import LegacyOptions
from vip_llava.cli.model_options import DebugFlag, ModelOptions, SamplingOptions
from vip_llava.cli.region_options import RegionOptions
from vip_llava.cli.terminal import error_line, note, write_answer
from vip_llava.errors import RequestError, VipLlavaError

__all__ = ["EPILOG", "chat"]

EPILOG = """Examples

  vip-llava chat photo.jpg

  vip-llava chat photo.jpg --box 100,80,260,300 --temperature 0.7 --seed 1

  printf '/point 40,60\\nWhat is <region:1>?\\n' | vip-llava chat photo.jpg

Commands: /box 10,20,200,150 and the other shapes, /regions, /save OUT.png, /undo, /help, /quit.
"""


def chat(
    ctx: typer.Context,
    *,
    photo: Annotated[str | None, typer.Argument(metavar="PHOTO", help="The photo.")] = None,
    regions: RegionOptions,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Write the drawn image here at the start."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each answer as one line of JSON.")
    ] = False,
    model: ModelOptions,
    sampling: SamplingOptions,
    legacy: LegacyOptions,
    debug: DebugFlag = False,
) -> None:
    """Talk about a photo in several turns.

    The regions given here have the ids 1, 2, ...; more can be added during the conversation. Every
    question may name any of them, like <region:2>. Ctrl-C stops an answer; /quit or Ctrl-D ends the
    conversation. With piped input each line is one turn.
    """
    photo, _ = photo_and_question(photo, None, legacy.image_file, None)
    if photo == "-" or save == "-":
        raise RequestError(
            "chat reads its turns from stdin and writes answers to stdout, so - can't be used here"
        )
    check_target(save, photo)
    marked, _ = mark(ctx, photo, regions, legacy)
    if save is not None:
        save_image(marked.shown, save)
    keywords = sampling.keywords()
    assistant = open_assistant(model, keywords)
    session = ChatSession(assistant, marked, keywords, unit=regions.unit)
    interactive = sys.stdin.isatty()
    if interactive:
        note(f"{photo} with {assistant.info.name}; /help lists the commands, /quit ends")
    for line in _lines(interactive=interactive):
        if line in ("/quit", "/exit"):
            break
        _turn(session, line, interactive=interactive, as_json=as_json)


def _turn(session: ChatSession, line: str, *, interactive: bool, as_json: bool) -> None:
    """Run one line. A mistake ends the program only if the input is not interactive."""
    try:
        if line.startswith("/"):
            session.command(line)
        elif line:
            _answer(session, line, as_json=as_json, interactive=interactive)
    except KeyboardInterrupt:
        if not interactive:
            raise
        write_answer("", end="\n")
        note("stopped; the conversation does not keep that turn")
    except (VipLlavaError, OSError) as error:
        if not interactive or isinstance(error, BrokenPipeError):
            raise
        error_line(str(error))


def _answer(session: ChatSession, question: str, *, as_json: bool, interactive: bool) -> None:
    with session.ask(question) as stream:
        for piece in stream:
            if not as_json:
                write_answer(piece)
        answer = stream.answer
    last = json.dumps(answer.to_json(), ensure_ascii=False) if as_json else ""
    write_answer(last, end="\n")
    for text in answer.notes:
        note(text)
    if interactive:
        note(f"{answer.usage.completion_tokens} tokens in {answer.timing.total:.1f} s")


def _lines(*, interactive: bool) -> Iterator[str]:
    """Stripped lines of the conversation until the end of input."""
    if interactive:
        with contextlib.suppress(ImportError):  # importing it adds arrow keys and history
            import readline  # noqa: F401
    while True:
        try:
            line = _read_line() if interactive else sys.stdin.readline()
        except EOFError:
            sys.stderr.write("\n")
            return
        if not interactive and not line:
            return
        yield line.strip()


def _read_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    # input() would write its prompt to stdout, which only carries answers.
    sys.stderr.write("> ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
