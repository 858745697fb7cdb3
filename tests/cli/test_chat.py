"""`vip-llava chat` on a tiny model: with piped input, and in a simulated terminal."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vip_llava.cli.chat_session import ChatSession
from vip_llava.errors import RegionError, RequestError
from vip_llava.images import open_image
from vip_llava.prompting.turns import MarkedImage, draw_images
from vip_llava.regions import Box, Point, draw

Program = Callable[..., Any]


@pytest.fixture
def opened(assistant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`chat` uses the model of the `assistant` fixture."""
    monkeypatch.setattr("vip_llava.cli.chat.open_assistant", lambda *_: assistant)


@pytest.fixture
def session(assistant: Any, photo: Path) -> ChatSession:
    [marked], _ = draw_images([MarkedImage(open_image(photo), (Box(5, 5, 40, 30),))])
    return ChatSession(assistant, marked, {"max_new_tokens": 6})


def ask(session: ChatSession, question: str) -> str:
    return session.ask(question).result().text


@pytest.mark.usefixtures("opened")
def test_each_piped_line_is_a_turn(program: Program, photo: Path, assistant: Any) -> None:
    lines = b"What is <region:1>?\n\n/point 60,40\nAnd <region:2>?\n"
    ran = program("chat", photo, "--box", "5,5,40,30", "--max-new-tokens", 6, stdin=lines)
    chat = assistant.chat(photo, [Box(5, 5, 40, 30)])
    first = chat.ask("What is <region:1>?", max_new_tokens=6).text
    chat.add_region(Point(60, 40))
    second = chat.ask("And <region:2>?", max_new_tokens=6).text
    assert (ran.code, ran.out) == (0, f"{first}\n{second}\n")
    assert "<region:2> lime point" in ran.err


@pytest.mark.usefixtures("opened")
def test_json_prints_one_line_per_turn(program: Program, photo: Path) -> None:
    ran = program("chat", photo, "--max-new-tokens", 4, "--json", stdin=b"What?\nWhere?\n")
    first, second = map(json.loads, ran.out.splitlines())
    assert first["prompt"] in second["prompt"] or "What?" in second["prompt"]
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]


@pytest.mark.usefixtures("opened")
def test_quit_ignores_later_lines(program: Program, photo: Path) -> None:
    ran = program("chat", photo, stdin=b"/quit\nWhat?\n")
    assert (ran.code, ran.out) == (0, "")


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"/star 1,2", "/star: unknown command; use one of /box"),
        (b"/box 1,2,3", "needs 4 numbers"),
        (b"/save", "/save needs a file name"),
        (b"/undo", "no turn or region to remove"),
        (b"What is <region:7>?", "<region:7>"),
    ],
)
def test_a_mistake_in_piped_input_exits_with_2(
    program: Program, photo: Path, line: bytes, message: str
) -> None:
    ran = program("chat", photo, stdin=line + b"\nWhat?\n")
    assert (ran.code, ran.out) == (2, "") and message in ran.err


def test_a_shape_command_adds_a_region_with_its_style(session: ChatSession, photo: Path) -> None:
    session.command("/point 60,40,3 color=blue alpha=99")
    added: Any = session.chat.regions[-1]
    assert (added.id, added.color, added.alpha, added.radius) == ("2", "blue", 99, 3)
    wanted = draw(
        open_image(photo),
        [Box(5, 5, 40, 30), Point(60, 40, radius=3, color="blue", alpha=99)],
    )
    assert session.chat.image is not None and session.chat.image.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/box 10,10,5,5", "/box '10,10,5,5': box: the corners are reversed"),
        ("/box 1,1,5,5 color=mauve", "color='mauve'"),
        ("/point 5,5 alpha=half", "alpha='half'"),
        ("/mask nowhere.png", "/mask nowhere.png: no such file"),
    ],
)
def test_errors_name_commands_as_typed(session: ChatSession, line: str, message: str) -> None:
    with pytest.raises(RegionError) as caught:
        session.command(line)
    assert str(caught.value).startswith(message) and "--" not in str(caught.value)


def test_undo_removes_turns_and_regions_in_reverse_order(session: ChatSession) -> None:
    ask(session, "What is <region:1>?")
    after_one = session.chat.turns
    session.command("/box 1,1,9,9")
    ask(session, "And <region:2>?")
    session.command("/undo")
    assert (session.chat.turns, len(session.chat.regions)) == (after_one, 2)
    session.command("/undo")
    assert (session.chat.turns, len(session.chat.regions)) == (after_one, 1)
    session.command("/undo")
    assert (session.chat.turns, len(session.chat.regions)) == ((), 1)
    with pytest.raises(RequestError, match="no turn or region to remove"):
        session.command("/undo")


def test_after_undo_the_same_question_gets_the_same_answer(session: ChatSession) -> None:
    first = ask(session, "What is <region:1>?")
    session.command("/undo")
    assert ask(session, "What is <region:1>?") == first


def test_a_failed_command_adds_nothing_to_undo(session: ChatSession) -> None:
    for line in ("/box 9,9,1,1", "/box 500,500,900,900", "/point 1,2 color=mauve", "/box '1"):
        with pytest.raises(RegionError):
            session.command(line)
    with pytest.raises(RequestError):
        session.command("/undo")
    assert len(session.chat.regions) == 1


def test_an_abandoned_turn_does_not_count(session: ChatSession) -> None:
    with session.ask("What is <region:1>?") as stream:
        next(stream)
    assert session.chat.turns == ()
    with pytest.raises(RequestError):
        session.command("/undo")


def test_save_regions_and_help_commands(
    session: ChatSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.command(f"/save {tmp_path / 'now.png'}")
    assert session.chat.image is not None
    assert open_image(tmp_path / "now.png").tobytes() == session.chat.image.tobytes()
    session.command("/regions")
    session.command("/help")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "<region:1> red box" in shown.err and "/undo" in shown.err


class Terminal:
    """A stdin that claims to be a terminal; an exception among the lines is raised."""

    def __init__(self, lines: list[str | type[BaseException]]) -> None:
        self.lines: Iterator[str | type[BaseException]] = iter(lines)

    def isatty(self) -> bool:
        return True

    def readline(self, _size: int = -1) -> str:
        line = next(self.lines, "")
        if isinstance(line, str):
            return line + "\n" if line else ""
        raise line


@pytest.fixture
def chat_in_terminal(
    monkeypatch: pytest.MonkeyPatch, photo: Path, opened: None
) -> Callable[..., int]:
    """`chat_in_terminal(lines, options)` runs `chat` in a terminal and returns the exit code."""
    from vip_llava.cli.main import main

    def run(lines: list[str | type[BaseException]], *argv: object) -> int:
        monkeypatch.setattr(sys, "stdin", Terminal(lines))
        monkeypatch.setattr(
            builtins, "input", lambda _prompt="": pytest.fail("stdout is not a terminal")
        )
        return main(["chat", str(photo), "--max-new-tokens", "4", *map(str, argv)])

    return run


def test_in_a_terminal_the_chat_continues_after_a_mistake(
    chat_in_terminal: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    code = chat_in_terminal(
        ["/star", "What is <region:9>?", "/box 5,5,40,30", "What is <region:1>?"]
    )
    shown = capfd.readouterr()
    assert code == 0 and shown.out.strip()
    assert shown.err.count("error:") == 2 and "<region:1> red box" in shown.err
    assert "tokens in" in shown.err


def test_ctrl_c_at_the_prompt_exits_with_130(chat_in_terminal: Callable[..., int]) -> None:
    assert chat_in_terminal([KeyboardInterrupt]) == 130


def test_ctrl_c_during_an_answer_stops_only_the_answer(
    chat_in_terminal: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vip_llava.cli import chat

    write, calls = chat.write_answer, []

    def interrupted(piece: str, *, end: str = "") -> None:
        calls.append(piece)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(piece, end=end)

    monkeypatch.setattr(chat, "write_answer", interrupted)
    assert chat_in_terminal(["What is this?", "/undo", "What is this?"]) == 0
    shown = capfd.readouterr()
    assert (
        "stopped" in shown.err and "no turn or region to remove" in shown.err and shown.out.strip()
    )


@pytest.mark.parametrize(
    ("argv", "message"), [(["-"], "reads its turns from stdin"), ([], "no photo given")]
)
def test_wrong_arguments_are_reported(program: Program, argv: list[str], message: str) -> None:
    ran = program("chat", "--unit", *argv)
    assert ran.code == 2 and message in ran.err
