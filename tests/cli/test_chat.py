"""`vip-llava chat`, run for real on a tiny model: piped, and with a made terminal."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vip_llava.cli.chat_session import Talk
from vip_llava.cli.inputs import Marked
from vip_llava.errors import RegionError, RequestError
from vip_llava.images import open_image
from vip_llava.regions import Box, Point, draw, resolve

Program = Callable[..., Any]


@pytest.fixture
def opened(assistant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`chat` talks with the model that is open already."""
    monkeypatch.setattr("vip_llava.cli.chat.open_assistant", lambda *_: assistant)


@pytest.fixture
def talk(assistant: Any, photo: Path) -> Talk:
    image = open_image(photo)
    regions = (Box(5, 5, 40, 30),)
    resolution = resolve(regions, image.size)
    marked = Marked(image, regions, resolution.regions, resolution.notes)
    return Talk(assistant, marked, {"max_new_tokens": 6})


def say(talk: Talk, question: str) -> str:
    return talk.ask(question).result().text


@pytest.mark.usefixtures("opened")
def test_piped_lines_are_turns(program: Program, photo: Path, assistant: Any) -> None:
    lines = b"What is <region:1>?\n\n/point 60,40\nAnd <region:2>?\n"
    ran = program("chat", photo, "--box", "5,5,40,30", "--max-new-tokens", 6, stdin=lines)
    chat = assistant.chat(photo, [Box(5, 5, 40, 30)])
    first = chat.ask("What is <region:1>?", max_new_tokens=6).text
    chat.add_region(Point(60, 40))
    second = chat.ask("And <region:2>?", max_new_tokens=6).text
    assert (ran.code, ran.out) == (0, f"{first}\n{second}\n")
    assert "<region:2> lime point" in ran.err


@pytest.mark.usefixtures("opened")
def test_json_is_one_line_a_turn(program: Program, photo: Path) -> None:
    ran = program("chat", photo, "--max-new-tokens", 4, "--json", stdin=b"What?\nWhere?\n")
    first, second = map(json.loads, ran.out.splitlines())
    assert first["prompt"] in second["prompt"] or "What?" in second["prompt"]
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]


@pytest.mark.usefixtures("opened")
def test_quit_ends_before_the_rest(program: Program, photo: Path) -> None:
    ran = program("chat", photo, stdin=b"/quit\nWhat?\n")
    assert (ran.code, ran.out) == (0, "")


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"/star 1,2", "/star: no such command; there are /box"),
        (b"/box 1,2,3", "needs 4 numbers"),
        (b"/save", "/save needs a file name"),
        (b"/undo", "nothing to take back"),
        (b"What is <region:7>?", "<region:7>"),
    ],
)
def test_a_mistake_in_piped_lines_ends_with_2(
    program: Program, photo: Path, line: bytes, message: str
) -> None:
    ran = program("chat", photo, stdin=line + b"\nWhat?\n")
    assert (ran.code, ran.out) == (2, "") and message in ran.err


def test_a_region_is_added_with_its_style(talk: Talk, photo: Path) -> None:
    talk.command("/point 60,40,3 color=blue alpha=99")
    added = talk.chat.regions[-1]
    assert (added.id, added.color, added.alpha, added.radius) == ("2", "blue", 99, 3)
    wanted = draw(
        open_image(photo),
        [Box(5, 5, 40, 30), Point(60, 40, radius=3, color="blue", alpha=99)],
    )
    assert talk.chat.image is not None and talk.chat.image.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/box 10,10,5,5", "/box '10,10,5,5': box: the corners are reversed"),
        ("/box 1,1,5,5 color=mauve", "color='mauve'"),
        ("/point 5,5 alpha=half", "alpha='half'"),
        ("/mask nowhere.png", "/mask nowhere.png: no such file"),
    ],
)
def test_a_mistake_is_told_as_it_was_typed(talk: Talk, line: str, message: str) -> None:
    with pytest.raises(RegionError) as caught:
        talk.command(line)
    assert str(caught.value).startswith(message) and "--" not in str(caught.value)


def test_undo_takes_back_turns_and_regions_in_reverse(talk: Talk) -> None:
    say(talk, "What is <region:1>?")
    after_one = talk.chat.messages
    talk.command("/box 1,1,9,9")
    say(talk, "And <region:2>?")
    talk.command("/undo")
    assert (talk.chat.messages, len(talk.chat.regions)) == (after_one, 2)
    talk.command("/undo")
    assert (talk.chat.messages, len(talk.chat.regions)) == (after_one, 1)
    talk.command("/undo")
    assert (talk.chat.messages, len(talk.chat.regions)) == ((), 1)
    with pytest.raises(RequestError, match="nothing to take back"):
        talk.command("/undo")


def test_after_undo_the_answer_is_that_of_a_fresh_start(talk: Talk) -> None:
    first = say(talk, "What is <region:1>?")
    talk.command("/undo")
    assert say(talk, "What is <region:1>?") == first


def test_a_failed_step_leaves_nothing_to_undo(talk: Talk) -> None:
    for line in ("/box 9,9,1,1", "/box 500,500,900,900", "/point 1,2 color=mauve", "/box '1"):
        with pytest.raises(RegionError):
            talk.command(line)
    with pytest.raises(RequestError):
        talk.command("/undo")
    assert len(talk.chat.regions) == 1


def test_a_turn_that_is_left_early_is_forgotten(talk: Talk) -> None:
    with talk.ask("What is <region:1>?") as stream:
        next(stream)
    assert talk.chat.messages == ()
    with pytest.raises(RequestError):
        talk.command("/undo")


def test_save_and_regions_and_help(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.command(f"/save {tmp_path / 'now.png'}")
    assert talk.chat.image is not None
    assert open_image(tmp_path / "now.png").tobytes() == talk.chat.image.tobytes()
    talk.command("/regions")
    talk.command("/help")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "<region:1> red box" in shown.err and "/undo" in shown.err


class Terminal:
    """Input that says it is a terminal; lines come from `input`, an exception is raised there."""

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
def sit_down(monkeypatch: pytest.MonkeyPatch, photo: Path, opened: None) -> Callable[..., int]:
    """`sit_down(lines, options)` chats in a terminal and returns the exit code."""
    from vip_llava.cli.main import main

    def run(lines: list[str | type[BaseException]], *argv: object) -> int:
        monkeypatch.setattr(sys, "stdin", Terminal(lines))
        monkeypatch.setattr(
            builtins, "input", lambda _prompt="": pytest.fail("stdout is no terminal")
        )
        return main(["chat", str(photo), "--max-new-tokens", "4", *map(str, argv)])

    return run


def test_in_a_terminal_a_mistake_is_told_and_the_talk_goes_on(
    sit_down: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    code = sit_down(["/star", "What is <region:9>?", "/box 5,5,40,30", "What is <region:1>?"])
    shown = capfd.readouterr()
    assert code == 0 and shown.out.strip()
    assert shown.err.count("error:") == 2 and "<region:1> red box" in shown.err
    assert "tokens in" in shown.err


def test_ctrl_c_at_the_prompt_ends(sit_down: Callable[..., int]) -> None:
    assert sit_down([KeyboardInterrupt]) == 130


def test_ctrl_c_during_an_answer_stops_only_the_answer(
    sit_down: Callable[..., int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vip_llava.cli import chat

    write, calls = chat.write_answer, []

    def interrupted(piece: str, *, end: str = "") -> None:
        calls.append(piece)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(piece, end=end)

    monkeypatch.setattr(chat, "write_answer", interrupted)
    assert sit_down(["What is this?", "/undo", "What is this?"]) == 0
    shown = capfd.readouterr()
    assert "stopped" in shown.err and "nothing to take back" in shown.err and shown.out.strip()


@pytest.mark.parametrize(
    ("argv", "message"), [(["-"], "reads its turns from stdin"), ([], "which photo?")]
)
def test_a_mistake_is_told(program: Program, argv: list[str], message: str) -> None:
    ran = program("chat", "--unit", *argv)
    assert ran.code == 2 and message in ran.err
