"""`vip-llava bench`: tables and JSON with both ways, files only when asked, errors in words."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.bench.workloads import WORKLOADS, Figure

Program = Callable[..., Any]
SMALL = ("--random", "tiny", "--runs", 1, "--new-tokens", 3, "--text-tokens", 6, "--askers", 2)


def test_a_table_of_both_ways(program: Program, tmp_path: Path) -> None:
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


def test_json_has_every_figure(program: Program) -> None:
    ran = program("bench", *SMALL, "--json")
    told = json.loads(ran.out)
    assert {row["workload"] for row in told["figures"]} == {
        "decode, one asker",
        "first token, new image",
        "2 askers",
        "2 askers, first token",
        "2 askers, whole answer",
        "first token, second turn",
    }
    assert told["peak_bytes"] > 0
    assert told["model"] == "random tiny"


def test_small_weights_can_be_measured(program: Program) -> None:
    ran = program("bench", *SMALL, "--workload", "first-token", "--quantization", "int8")
    assert ran.code == 0, ran.err
    assert "# Speed of random tiny, 8-bit weights, torch" in ran.out
    assert "TFLOP/s in products" in ran.out


def test_what_fails_costs_nothing_else(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> list[Figure]:
        raise RuntimeError("made up")

    monkeypatch.setitem(WORKLOADS, "decode", refuse)
    target = tmp_path / "speed.md"
    words = ("--workload", "decode", "--workload", "first-token", "--write", target)
    ran = program("bench", *SMALL, *words)
    assert ran.code == 1
    assert "Not measured: decode: RuntimeError: made up" in ran.out
    assert "| first token, new image | engine |" in target.read_text()


def test_after_some_time_nothing_more_begins(program: Program) -> None:
    words = ("--workload", "first-token", "--workload", "decode", "--seconds", 0.0001)
    ran = program("bench", *SMALL, *words)
    assert ran.code == 1
    assert "Not measured: decode: TimeoutError: the time was over" in ran.out


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
        (("--random", "huge"), "--random huge: known are tiny, 7b"),
        ((*SMALL, "--workload", "all"), "--workload all: known are decode"),
        ((*SMALL, "--model", "x"), "can't go with --model"),
        ((*SMALL, "--dtype", "float5"), "--dtype float5"),
        ((*SMALL, "--write", "nowhere/at/all.md"), "there is no folder"),
    ],
)
def test_what_cannot_be_is_told(program: Program, words: tuple[Any, ...], message: str) -> None:
    ran = program("bench", *words)
    assert ran.code == 2
    assert message in ran.err


def test_the_script_names_its_result_by_hardware() -> None:
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
