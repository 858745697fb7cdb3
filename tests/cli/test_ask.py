"""`vip-llava ask` on a tiny model with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.images import open_image
from vip_llava.regions import Box, Point, draw

Program = Callable[..., Any]
QUESTION = "What is <region:1>?"


@pytest.fixture
def ask(program: Program, photo: Path, tiny_model_folder: Path) -> Program:
    """`ask("question", ...)` asks about the photo, for at most 8 tokens."""

    def run(*argv: object, stdin: bytes = b"") -> Any:
        model = ("--model", tiny_model_folder, "--max-new-tokens", 8)
        return program("ask", photo, *argv, *model, stdin=stdin)

    return run


def test_stdout_carries_only_the_answer(ask: Program, photo: Path, assistant: Any) -> None:
    ran = ask(QUESTION, "--box", "5,5,40,30")
    wanted = assistant.ask(photo, QUESTION, [Box(5, 5, 40, 30)], max_new_tokens=8)
    assert (ran.code, ran.out) == (0, wanted.text + "\n")
    assert "opening" in ran.err


def test_streaming_gives_the_same_text(ask: Program) -> None:
    argv = (QUESTION, "--box", "5,5,40,30")
    assert ask(*argv, "--stream").out.strip() == ask(*argv, "--no-stream").out.strip()


def test_json_contains_what_the_model_saw(
    ask: Program, photo: Path, tmp_path: Path, assistant: Any
) -> None:
    out = tmp_path / "drawn.png"
    ran = ask(
        "Is <region:2> left of <region:1>?", "--point", "60,40", "--box", "5,5,40,30",
        "--json", "--save", out,
    )  # fmt: skip
    content = json.loads(ran.out)
    regions = [Point(60, 40), Box(5, 5, 40, 30)]
    wanted = assistant.ask(
        photo, "Is <region:2> left of <region:1>?", regions, max_new_tokens=8
    ).to_json()
    for name in ("timing", "seed"):
        content.pop(name), wanted.pop(name)
    assert content == {**wanted, "saved": str(out)}
    assert "lime rectangle" in content["prompt"] and "red point" in content["prompt"]
    assert open_image(out).tobytes() == draw(open_image(photo), regions).tobytes()


def test_the_question_may_be_piped(ask: Program) -> None:
    typed = ask(QUESTION, "--box", "5,5,40,30")
    piped = ask("--box", "5,5,40,30", stdin=f"{QUESTION}\n".encode())
    dash = ask("-", "--box", "5,5,40,30", stdin=QUESTION.encode())
    assert typed.out == piped.out == dash.out


def test_sampling_follows_the_seed(ask: Program) -> None:
    argv = ("What is this?", "--temperature", "2", "--top-k", "50", "--json", "--seed")
    first, second, other = (json.loads(ask(*argv, seed).out) for seed in (1, 1, 2))
    assert first["text"] == second["text"] != other["text"]
    assert first["seed"] == 1


def test_a_stop_text_ends_the_answer(ask: Program) -> None:
    whole = ask("What is this?").out.strip()
    stop = whole[2]
    assert ask("What is this?", "--stop", stop).out == whole[: whole.index(stop)].strip() + "\n"


def test_flags_of_the_original_give_the_same_answer(
    program: Program, photo: Path, tiny_model_folder: Path, assistant: Any
) -> None:
    ran = program(
        "ask", "--model-path", tiny_model_folder, "--image-file", photo, "--query", "What is it?",
        "--bbox=5,5,60,50", "--shape", "rectangle", "--rgb", "0,255,0", "--alpha", "200", "--width", "9",
        "--temperature", "0", "--max_new_tokens", "8", "--device", "cpu", "--conv-mode", "llava_v1", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    content = json.loads(ran.out)
    region = Box(5, 5, 60, 50, color="lime", alpha=200, width=2)
    wanted = assistant.ask(photo, "What is it?", [region], max_new_tokens=8)
    assert content["text"] == wanted.text
    assert content["regions"] == [{**region.to_json(), "id": "1", "width": 2}]


def test_the_question_may_be_an_argument_after_image_file(
    program: Program, photo: Path, tiny_model_folder: Path
) -> None:
    argv = ["--model", tiny_model_folder, "--max-new-tokens", 4]
    one = program("ask", "--image-file", photo, "What is it?", *argv)
    two = program("ask", photo, "What is it?", *argv)
    assert one.code == two.code == 0 and one.out == two.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["What is <region:2>?", "--box", "5,5,40,30"], "<region:2>"),
        (["   "], "no question"),
        ([], "no question"),
        (["What?", "--query", "What?"], "given twice"),
        (["What?", "--image-file", "x.png"], "given twice"),
        (["What?", "--load-4bit", "--load-8bit"], "more than one quantization"),
        (["What?", "--temperature", "hot"], "--temperature"),
        (["What?", "--temperature", "-1"], "temperature"),
        (["What?", "--top-p", "7"], "top_p"),
        (["What?", "--save", "-"], "stdout is for the answer"),
        (["What?", "--save", "o.xyz"], "--save o.xyz"),
        (["What?", "--model", "no-such-folder/at-all/here"], "no-such-folder"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_loaded(
    program: Program, photo: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = program("ask", photo, *argv)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err and "vip-llava: error: " in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dtype", "float7"], "float7"),
        (["--template", "v9"], "v9"),
        (["--quantization", "3bit"], "3bit"),
    ],
)
def test_a_wrong_model_option_is_reported(ask: Program, argv: list[str], message: str) -> None:
    ran = ask("What?", *argv)
    assert ran.code == 2 and message in ran.err


def test_a_missing_photo_argument_is_reported(program: Program) -> None:
    ran = program("ask", "--box", "1,1,9,9")
    assert ran.code == 2 and "no photo given" in ran.err


def test_ask_in_a_child_process(
    vip_llava: Callable[..., Any], photo: Path, tiny_model_folder: Path, assistant: Any
) -> None:
    done = vip_llava(
        "ask",
        photo,
        QUESTION,
        "--box",
        "5,5,40,30",
        "--model",
        tiny_model_folder,
        "--max-new-tokens",
        8,
    )
    wanted = assistant.ask(photo, QUESTION, [Box(5, 5, 40, 30)], max_new_tokens=8)
    assert (done.returncode, done.stdout.decode()) == (0, wanted.text + "\n"), done.stderr
