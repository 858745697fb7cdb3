"""Runs with a tiny model: batches, interrupted runs, failed rows, the run directory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.benchmark import BenchmarkItem, BenchmarkOptions, limit_per_group
from vip_llava.evaluation.benchmarks import BENCHMARKS, benchmark_class, open_benchmark
from vip_llava.evaluation.provenance import weights_fingerprint
from vip_llava.evaluation.results import ResultRow
from vip_llava.evaluation.run import run, select_items
from vip_llava.evaluation.run_directory import RunDirectory, answer_record, slug

FEW: dict[str, Any] = {"sampling": {"max_new_tokens": 6}}


def listed(folder: Path) -> dict[str, bytes]:
    """The files whose content depends on the questions alone."""
    return {
        p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.json"
    }


def test_the_files_of_a_run(assistant: Any, visual7w: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark("visual7w", visual7w)
    result = run(assistant, benchmark, tmp_path / "run", max_failed=1, command=["a", "b"], **FEW)
    assert result.asked == len(result.rows) == 5
    folder = RunDirectory.open(tmp_path / "run")
    assert tuple(folder.rows()) == result.rows
    answers = [
        json.loads(line) for line in (folder.path / "answers.jsonl").read_text().splitlines()
    ]
    assert set(answers[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert [a["question_id"] for a in answers] == [f"v7w-{n}" for n in range(5)]
    assert answers[0]["text"] == result.rows[0].answer and answers[0]["metadata"] == {}
    assert answers[4]["text"] == "" and "missing.jpg" in answers[4]["metadata"]["failed"]
    row = result.rows[0]
    assert "A. The object within" in row.question and len(row.regions) == 4 and row.tokens
    assert (folder.path / row.shown).stat().st_size > 0
    info = folder.info
    assert info["command"] == ["a", "b"] and info["versions"]["vip-llava"]
    assert info["config"]["sampling"] == {"max_new_tokens": 6} and info["hardware"]["cores"]
    scores = json.loads((folder.path / "scores.json").read_text())
    assert scores[0]["count"] == 5 and scores[0]["failed"] == 1


def test_batch_equals_single(assistant: Any, visual7w: Path, tmp_path: Path) -> None:
    for size in (1, 4):
        run(assistant, open_benchmark("visual7w", visual7w), tmp_path / str(size), batch_size=size, max_failed=1, **FEW)  # fmt: skip
    assert listed(tmp_path / "1") == listed(tmp_path / "4")


class StopError(Exception):
    """Stops a run."""


def test_an_interrupted_run_is_resumed(
    assistant: Any, labelled_folder: Path, tmp_path: Path
) -> None:
    def benchmark() -> Any:
        return open_benchmark("shapes", labelled_folder, BenchmarkOptions(groups=("box", "arrow")))

    run(assistant, benchmark(), tmp_path / "whole", **FEW)
    seen: list[str] = []

    def stop(row: ResultRow) -> None:
        seen.append(row.id)
        if len(seen) == 7:
            raise StopError

    with pytest.raises(StopError):
        run(assistant, benchmark(), tmp_path / "cut", on_row=stop, **FEW)
    kept = RunDirectory.open(tmp_path / "cut").rows()
    assert [row.id for row in kept] == seen and not (tmp_path / "cut" / "scores.json").exists()
    # As if the program was killed while it wrote a line.
    with (tmp_path / "cut" / "rows.jsonl").open("a") as file:
        file.write('{"id": "half')
    again: list[str] = []
    result = run(
        assistant, benchmark(), tmp_path / "cut", on_row=lambda row: again.append(row.id), **FEW
    )
    assert result.asked == len(again) == 9 and not set(again) & set(seen)
    assert listed(tmp_path / "whole") == listed(tmp_path / "cut")
    assert run(assistant, benchmark(), tmp_path / "cut", **FEW).asked == 0


@pytest.mark.slow
def test_a_killed_run_is_resumed(
    assistant: Any, labelled_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """The program, killed as soon as it has written a row."""
    options = BenchmarkOptions(groups=("box", "ellipse", "mask", "point"), all_photos=True)
    benchmark = open_benchmark("shapes", labelled_folder, options)
    whole = len(run(assistant, benchmark, tmp_path / "whole").rows)
    command = [sys.executable, "-m", "vip_llava", "eval", "shapes", "--data", str(labelled_folder)]
    command += ["--model", str(tiny_model_folder), "--device", "cpu", "--all"]
    command += ["--groups", ",".join(options.groups)]
    command += ["--output", str(tmp_path / "cut")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        rows = tmp_path / "cut" / "rows.jsonl"
        while running.poll() is None and not (rows.is_file() and rows.stat().st_size):
            time.sleep(0.005)
        running.kill()
    before = len(RunDirectory.open(tmp_path / "cut").rows())
    assert 0 < before < whole and not (tmp_path / "cut" / "scores.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert listed(tmp_path / "whole") == listed(tmp_path / "cut")


def test_failed_rows_are_asked_again(
    assistant: Any, visual7w: Path, tmp_path: Path, draw_image: Callable[..., None]
) -> None:
    def once() -> Any:
        return run(
            assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", max_failed=1, **FEW
        )

    assert once().rows[4].failed
    draw_image(visual7w / "v7w" / "missing.jpg")
    result = once()
    assert result.asked == 1 and result.rows[4].failed is None and result.scores[0].failed == 0


def test_too_many_failures_stop_the_run(assistant: Any, visual7w: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 of 5 rows are bad, and the limit is 0 rows(?s:.*)missing\.jpg"
    ):
        run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", max_failed=0, **FEW)
    assert len(RunDirectory.open(tmp_path / "r").rows()) == 5  # the rows are kept
    for wrong in (-1, 1.5, True):
        with pytest.raises(DataError, match="limit of failures"):
            run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", max_failed=wrong, **FEW)  # fmt: skip


def test_a_directory_holds_one_run(assistant: Any, visual7w: Path, tmp_path: Path) -> None:
    run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", max_failed=1, **FEW)
    for changed, what in (
        (BenchmarkOptions(seed=3), "seed"),
        (BenchmarkOptions(alpha=90), "alpha"),
    ):
        with pytest.raises(RequestError, match=f"another {what}"):
            run(assistant, open_benchmark("visual7w", visual7w, changed), tmp_path / "r", **FEW)
    with pytest.raises(RequestError, match="another sampling"):
        run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "r")
    rows = json.loads((visual7w / "v7w-test.json").read_text())
    (visual7w / "v7w-test.json").write_text(json.dumps(rows[:3]))
    with pytest.raises(RequestError, match="another data"):
        run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", **FEW)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RequestError, match="holds other files"):
        run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "mine", **FEW)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_question_that_is_too_long_fails_alone(
    assistant: Any, tmp_path: Path, visual7w: Path
) -> None:
    rows = json.loads((visual7w / "v7w-test.json").read_text())[:4]
    rows[1]["question"] = "why " * 3000
    (visual7w / "v7w-test.json").write_text(json.dumps(rows))
    result = run(
        assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", batch_size=3, **FEW
    )
    assert [bool(row.failed) for row in result.rows] == [False, True, False, False]
    assert "tokens" in (result.rows[1].failed or "")


def test_another_model_of_the_same_name_is_another_model(
    assistant: Any, tiny_model_folder: Path, tmp_path: Path, visual7w: Path
) -> None:
    import torch

    from vip_llava.assistant import load

    run(assistant, open_benchmark("visual7w", visual7w), tmp_path / "r", max_failed=1, **FEW)
    trained = load(tiny_model_folder, device="cpu")
    assert weights_fingerprint(trained.backend.model) == weights_fingerprint(
        assistant.backend.model
    )
    with torch.no_grad():
        for parameter in trained.backend.model.parameters():
            parameter.add_(1e-3)
    with pytest.raises(RequestError, match="another weights"):
        run(trained, open_benchmark("visual7w", visual7w), tmp_path / "r", max_failed=1, **FEW)


def test_each_group_has_its_answers_file(
    assistant: Any, labelled_folder: Path, tmp_path: Path
) -> None:
    benchmark = open_benchmark(
        "shapes", labelled_folder, BenchmarkOptions(groups=("box", "control"))
    )
    run(assistant, benchmark, tmp_path / "r", limit=2, **FEW)
    files = sorted(path.name for path in (tmp_path / "r" / "answers").iterdir())
    assert (
        files == ["box.jsonl", "control.jsonl"] and not (tmp_path / "r" / "answers.jsonl").exists()
    )


def test_directories_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run of an evaluation"):
        RunDirectory.open(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match="can't be read"):
        _ = RunDirectory.open(tmp_path).info
    (tmp_path / "rows.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match="line 1: not a result row"):
        RunDirectory(tmp_path).rows()


def test_the_limit_is_spread_evenly_over_each_group() -> None:
    items = [BenchmarkItem(f"{g}{n}", g, "", lambda: None, "") for g in "ab" for n in range(10)]  # type: ignore[arg-type, return-value]
    assert [item.id for item in limit_per_group(items, 3)] == ["a0", "a3", "a6", "b0", "b3", "b6"]
    assert len(limit_per_group(items, 99)) == len(limit_per_group(items, None)) == 20


def test_no_questions_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "v7w-test.json").write_text("[]")
    with pytest.raises(DataError, match="no questions for"):
        select_items(open_benchmark("visual7w", tmp_path))


def test_answers_in_the_format_of_the_original() -> None:
    row = ResultRow("v7w-1", "", "A", answer="A", question="Which?", facts={"question_id": 7})
    line = answer_record(row, "m")
    assert (line["question_id"], line["model_id"], line["text"]) == (7, "m", "A")
    assert line == answer_record(row, "m") != answer_record(row, "other")
    assert slug("mucai/vip-llava-7b") == "mucai-vip-llava-7b" and slug("../..") == "model"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_describes_itself(name: str) -> None:
    kind = benchmark_class(name)
    assert kind.name == name and kind.needs and len(kind.about) < 80
