"""`vip-llava bench`: tables and JSON of both implementations, files on request, error messages."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.bench.workloads import WORKLOADS, Measurement

Program = Callable[..., Any]
SMALL = ("--random", "tiny", "--runs", 1, "--new-tokens", 3, "--text-tokens", 6, "--concurrency", 2)


def test_a_table_of_both_implementations(program: Program, tmp_path: Path) -> None:
    target = tmp_path / "speed.md"
    ran = program("bench", *SMALL, "--workload", "decode", "--write", target)
    assert ran.code == 0, ran.err
    rows = [line.split(" | ") for line in ran.out.splitlines() if line.startswith("| decode")]
    assert [row[1] for row in rows] == ["transformers", "engine"]
    plain, ours = (float(row[2]) for row in rows)
    assert float(rows[1][5].rstrip(" |")) == pytest.approx(ours / plain, rel=0.02)
    assert rows[0][5] == "1.00 |"
    assert "GB/s" in ran.out
    assert target.read_text() == ran.out


def test_json_has_every_measurement(program: Program) -> None:
    ran = program("bench", *SMALL, "--json")
    found = json.loads(ran.out)
    assert {row["workload"] for row in found["measurements"]} == {
        "decode, one request",
        "first token, new image",
        "2 requests at once",
        "2 requests at once, first token",
        "2 requests at once, whole answer",
        "first token, second turn",
    }
    assert found["peak_bytes"] > 0
    assert found["model"] == "random tiny"


def test_quantized_weights_can_be_measured(program: Program) -> None:
    ran = program("bench", *SMALL, "--workload", "first-token", "--quantization", "int8")
    assert ran.code == 0, ran.err
    assert "# Speed of random tiny, 8-bit weights, torch" in ran.out
    assert "TFLOP/s in products" in ran.out


def test_a_failed_workload_does_not_stop_the_others(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> list[Measurement]:
        raise RuntimeError("made up")

    monkeypatch.setitem(WORKLOADS, "decode", refuse)
    target = tmp_path / "speed.md"
    words = ("--workload", "decode", "--workload", "first-token", "--write", target)
    ran = program("bench", *SMALL, *words)
    assert ran.code == 1
    assert "Not measured: decode: RuntimeError: made up" in ran.out
    assert "| first token, new image | engine |" in target.read_text()


def test_no_workload_starts_after_the_time_limit(program: Program) -> None:
    words = ("--workload", "first-token", "--workload", "decode", "--seconds", 0.0001)
    ran = program("bench", *SMALL, *words)
    assert ran.code == 1
    assert "Not measured: decode: TimeoutError: not started, --seconds" in ran.out


def test_a_model_can_be_measured(
    program: Program, assistant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vip_llava.cli.bench.open_assistant", lambda *_: assistant)
    ran = program("bench", *SMALL[2:], "--workload", "first-token")
    assert ran.code == 0, ran.err
    assert f"One image of {assistant.info.tokens_per_view} tokens" in ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--random", "huge"), "--random huge: must be one of tiny, 7b"),
        ((*SMALL, "--workload", "all"), "--workload all: must be one of decode"),
        ((*SMALL, "--model", "x"), "cannot be combined with --model"),
        ((*SMALL, "--dtype", "float5"), "--dtype float5"),
        ((*SMALL, "--write", "nowhere/at/all.md"), "there is no folder"),
    ],
)
def test_bad_options_are_reported(program: Program, words: tuple[Any, ...], message: str) -> None:
    ran = program("bench", *words)
    assert ran.code == 2
    assert message in ran.err


def test_the_script_names_results_by_hardware() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "engine.py"
    spec = importlib.util.spec_from_file_location("engine_script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = script.arguments(["--random", "tiny", "--write", "one-gpu"])
    assert words[:4] == ["bench", "--random", "tiny", "--write"]
    assert Path(words[4]).parent == path.parent / "results"
    assert Path(words[4]).name.startswith("engine_one-gpu_")
    assert script.arguments([]) == ["bench", "--runs", "5"]
    whole = script.arguments(["--all", "--runs", "2"])
    assert whole[:3] == ["bench", "--runs", "2"]
    assert set(whole[4::2]) == set(WORKLOADS)
    assert set(whole[3::2]) == {"--workload"}
