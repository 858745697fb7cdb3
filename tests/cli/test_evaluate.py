"""`vip-llava eval`: the table, the files, the page, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., Any]


def test_table_json_and_page(
    program: Program, labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    written, page = tmp_path / "scores.json", tmp_path / "page.html"
    argv = ("--data", labelled_folder, "--model", tiny_model_folder, "--limit", 3)
    files = ("--json", written, "--html", page)
    ran = program(
        "eval", "shapes", *argv, "--variants", "box,control", "--variants", "arrow", *files
    )
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines() if line.strip()]
    first = [line[0] for line in lines]
    assert [name for name in first if name in ("box", "control", "arrow")] == ["box", "arrow", "control"]  # fmt: skip
    assert "box: 3 questions" in ran.err and "[" in ran.out
    found = json.loads(written.read_text("utf-8"))
    scores = {(score["name"], score["group"]): score for score in found["scores"]}
    assert scores["right", "box"]["count"] == 3
    assert len([row for row in found["answers"] if row["group"] == "box"]) == 3
    text = page.read_text("utf-8")
    assert text.count("data:image/jpeg") == len(found["answers"])
    assert "What is the object within the red rectangle?" in text
    assert str(labelled_folder.parent) in text  # the command line


def test_a_run_is_resumed(
    program: Program, labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    argv = ("--data", labelled_folder, "--model", tiny_model_folder, "--groups", "box,control")
    again = ("eval", "shapes", *argv, "--output", tmp_path / "run", "--limit", 2)
    ran = program(*again)
    assert ran.code == 0 and "4 questions in" in ran.err, ran.err
    ran = program(*again)
    assert ran.code == 0 and "4 of 4 answers were already in the run directory" in ran.err
    ran = program(*again, "--seed", 1)
    assert ran.code == 2 and "another seed" in ran.err
    ran = program("eval", "report", tmp_path / "run", "-o", tmp_path / "page.html")
    assert ran.code == 0 and "page.html" in ran.err
    assert "control" in (tmp_path / "page.html").read_text("utf-8")


def test_the_flags_of_the_original(
    program: Program, labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """`--question-file` and `--image-folder`, with the images elsewhere."""
    listing = tmp_path / "regions.jsonl"
    listing.write_bytes((labelled_folder / "regions.jsonl").read_bytes())
    files = ("--question-file", listing, "--image-folder", labelled_folder)
    ran = program(
        "eval",
        "recognition",
        *files,
        "--model-path",
        tiny_model_folder,
        "--limit",
        1,
        "--image_aspect_ratio",
        "resize",
    )
    assert ran.code == 0 and "could not be asked" not in ran.err, ran.err


def test_interrupted_with_ctrl_c(
    program: Program,
    labelled_folder: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vip_llava.evaluation import run

    whole = run.limit_per_group

    def interrupted(items: Any, most: Any) -> Any:
        def stop() -> Any:
            raise KeyboardInterrupt

        return [*whole(items, most)[:3], replace(whole(items, most)[3], build_request=stop)]

    argv = ("eval", "shapes", "--data", labelled_folder, "--model", tiny_model_folder)
    more = ("--groups", "box", "--batch-size", 1, "--output", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run, "limit_per_group", interrupted)
        ran = program(*argv, *more)
    assert ran.code == 130 and "the same command resumes the run in" in ran.err
    kept = (tmp_path / "run" / "rows.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == 3
    ran = program(*argv, *more)
    assert ran.code == 0 and "3 of 8 answers were already in the run directory" in ran.err


def test_all_photos(program: Program, labelled_folder: Path, tiny_model_folder: Path) -> None:
    argv = ("--data", labelled_folder, "--model", tiny_model_folder, "--variants", "box")
    ran = program("eval", "shapes", *argv, "--all")
    assert ran.code == 0 and "box: 12 questions" in ran.err


def test_the_group_lists_its_benchmarks(program: Program) -> None:
    ran = program("eval", "--help")
    assert ran.code == 0
    for name in ("visual7w", "pointqa", "vcr", "vip-bench", "refcocog", "recognition", "shapes"):
        assert name in ran.out
    ran = program("eval", "vcr", "--help")
    assert ran.code == 0 and "joint Q->AR" in ran.out and "never replaced" in ran.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "{made}"], "No such option"),
        (["shapes"], "--data"),
        (["shapes", "--data", "{tmp}/none"], "no such file or folder"),
        (["shapes", "--data", "{tmp}"], "holds no regions.jsonl"),
        (["vcr", "--data", "{made}"], "holds no vcr-val.json"),
        (["nonsense", "--data", "{made}"], "No such command 'nonsense'"),
        (["shapes", "--data", "{made}", "--variants", "boxes"], "the groups are box, "),
        (["shapes", "--data", "{made}", "--variants", ","], "the groups are box, "),
        (["shapes", "--data", "{made}", "--limit", "0"], "--limit"),
        (["shapes", "--data", "{made}", "--json", "{tmp}/none/a.json"], "does not exist"),
        (["shapes", "--data", "{made}", "--html", "{tmp}/none/a.html"], "does not exist"),
        (["shapes", "--data", "{made}", "--weights", "x", "--model", "y"], "leave --model out"),
        (["shapes", "--data", "{made}", "--weights", "x", "--template", "y"], "--template"),
        (["report", "{tmp}", "-o", "{tmp}/a.html"], "not a run of an evaluation"),
        (["report", "{tmp}", "-o", "{tmp}/none/a.html"], "does not exist"),
        (["report", "{tmp}", "-o", "{tmp}"], "is a folder; name a file"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_opened(
    program: Program,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model is opened")

    monkeypatch.setattr("vip_llava.assistant.load", fail)
    names = {"made": labelled_folder, "tmp": tmp_path}
    ran = program("eval", *(item.format(**names) for item in argv))
    assert ran.code == 2 and "Traceback" not in ran.err
    assert message in ran.err + ran.out


def test_weights_are_loaded_into_the_default_model(
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

    monkeypatch.setattr("vip_llava.models.default.build.load_default", load_default)
    argv = ("--data", labelled_folder, "--weights", tmp_path, "--device", "cpu", "--limit", 2)
    ran = program("eval", "shapes", *argv, "--variants", "box")
    assert ran.code == 0, ran.err
    assert opened["weights"] == tmp_path and str(opened["device"]) == "cpu"


@pytest.mark.default_model
@pytest.mark.slow
def test_the_default_model_is_scored(program: Program, labelled_folder: Path) -> None:
    ran = program("eval", "shapes", "--data", labelled_folder, "--variants", "box", "--limit", 2)
    assert ran.code == 0 and "box" in ran.out, ran.err
