"""`vip-llava eval`: the table, the files, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., Any]


def test_table_json_and_page(
    program: Program, labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    written, page = tmp_path / "scores.json", tmp_path / "page.html"
    argv = ("--data", labelled_folder, "--model", tiny_model_folder, "--most", 3)
    files = ("--json", written, "--html", page)
    ran = program("eval", *argv, "--variants", "box,control", "--variants", "sides", *files)
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines() if line.strip()]
    assert [line[0] for line in lines[2:]] == ["box", "control", "sides"] and "Variant" in lines[0]
    assert "2 photos" in ran.err and "box: 3 questions" in ran.err
    found = json.loads(written.read_text("utf-8"))
    assert list(found) == ["box", "control", "sides"]
    assert found["box"]["score"]["items"] == 3 == len(found["box"]["answers"])
    assert set(found["box"]["answers"][0]) == {"id", "label", "expected", "answer", "right"}
    text = page.read_text("utf-8")
    assert text.count("<figure") == 3 + 3 + len(found["sides"]["answers"])
    assert "What is the object within the red rectangle?" in text


def test_all_photos(program: Program, labelled_folder: Path, tiny_model_folder: Path) -> None:
    argv = ("--data", labelled_folder, "--model", tiny_model_folder, "--variants", "box")
    ran = program("eval", *argv, "--all")
    assert ran.code == 0 and "4 photos" in ran.err and "box: 12 questions" in ran.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--data"),
        (["--data", "{tmp}/none"], "regions.jsonl does not exist"),
        (["--data", "{made}", "--variants", "boxes"], "known are box, "),
        (["--data", "{made}", "--variants", ","], "known are box, "),
        (["--data", "{made}", "--most", "0"], "--most"),
        (["--data", "{made}", "--json", "{tmp}/none/a.json"], "there is no folder"),
        (["--data", "{made}", "--html", "{tmp}/none/a.html"], "there is no folder"),
        (["--data", "{made}", "--weights", "x", "--model", "y"], "leave --model out"),
        (["--data", "{made}", "--weights", "x", "--template", "y"], "--template"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_opened(
    program: Program,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model is opened")

    monkeypatch.setattr("vip_llava.api.load", fail)
    names = {"made": labelled_folder, "tmp": tmp_path}
    ran = program("eval", *(item.format(**names) for item in argv))
    assert ran.code == 2 and "Traceback" not in ran.err
    assert message in ran.err + ran.out


def test_other_weights_of_the_default_model(
    program: Program,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lite_model: Any,
    lite_processor: Any,
) -> None:
    opened: dict[str, Any] = {}

    def load_default(**options: Any) -> Any:
        opened.update(options)
        return lite_model(), lite_processor

    monkeypatch.setattr("vip_llava.model.default.load_default", load_default)
    argv = ("--data", labelled_folder, "--weights", tmp_path, "--device", "cpu", "--most", 2)
    ran = program("eval", *argv, "--variants", "box")
    assert ran.code == 0, ran.err
    assert opened["weights"] == tmp_path and str(opened["device"]) == "cpu"


@pytest.mark.default_model
@pytest.mark.slow
def test_the_default_model_is_scored(program: Program, labelled_folder: Path) -> None:
    ran = program("eval", "--data", labelled_folder, "--variants", "box", "--most", 2)
    assert ran.code == 0 and "box" in ran.out, ran.err
