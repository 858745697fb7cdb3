"""`vip-llava convert`: there and back again, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.cli.models import describe_folder

Program = Callable[..., Any]


def test_there_and_back_answers_the_same(
    program: Program, tiny_model_folder: Path, tmp_path: Path, photo: Path
) -> None:
    original, back = tmp_path / "original", tmp_path / "back"
    there = program("convert", tiny_model_folder, original, "--to", "original")
    assert there.code == 0 and there.out == "" and "written" in there.err, there.err
    assert describe_folder(original).layout == "original"
    assert program("convert", original, back, "--to", "hf").code == 0
    assert describe_folder(back).layout == "Hugging Face"
    argv = ("What is <region:1>?", "--box", "5,5,40,30", "--max-new-tokens", 8, "--model")
    first, second, third = (
        program("ask", photo, *argv, each).out for each in (tiny_model_folder, original, back)
    )
    assert first == second == third != ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{tiny}", "{full}", "--to", "hf"], "give a new or empty folder"),
        (["{tiny}", "new", "--to", "gguf"], "--to"),
        (["{tiny}", "new"], "--to"),
        (["{full}", "{full}/new", "--to", "hf"], ""),
    ],
)
def test_a_mistake_is_told(
    program: Program, tiny_model_folder: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    (tmp_path / "file.txt").write_text("taken")
    names = {"tiny": tiny_model_folder, "full": tmp_path}
    ran = program("convert", *(item.format(**names) for item in argv))
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt"]
