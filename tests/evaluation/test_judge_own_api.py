"""This project's own server as the judge: a model over HTTP, with a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import RequestError
from vip_llava.evaluation.benchmarks.vip_bench import VipBench
from vip_llava.evaluation.judge.endpoint import JudgeEndpoint
from vip_llava.evaluation.judge.grading import grade_run
from vip_llava.evaluation.judge.score_files import write_judged
from vip_llava.evaluation.results import ResultRow
from vip_llava.evaluation.run_directory import RunDirectory
from vip_llava.serving.api.app import create_app
from vip_llava.serving.middleware.server import background
from vip_llava.serving.settings import make_settings

KEY = "a-key-of-this-test-and-no-other"


def finished(path: Path) -> Path:
    folder = RunDirectory.create_or_resume(path, {"benchmark": "vip-bench", "model": "m"}, {})
    facts = {"question_id": "v1_0", "capability": ["rec"], "question": "What is it?"}
    rows = [ResultRow("bbox/v1_0", "bbox", "a dog", answer="a cat", facts=facts)]
    folder.append(rows[0])
    folder.finish(rows, VipBench.aggregate(rows), {})
    return path


def test_our_own_server_judges(
    assistant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model gives no number: after five tries, the grade counts as 0."""
    # Without a seed in the request, the server chooses one; with some, the model gives a number.
    monkeypatch.setattr("secrets.randbits", lambda bits: 7)
    settings = make_settings(port=0, keys=[KEY])
    app = create_app({"tiny": assistant}, settings)
    folder = finished(tmp_path / "run")
    with background(app, settings) as address:
        with JudgeEndpoint(f"{address}/v1", "tiny", key=KEY) as judge:
            grades = grade_run(folder, judge, "| Correctness", times=2)
        with (
            JudgeEndpoint(f"{address}/v1", "tiny", key="wrong") as stranger,
            pytest.raises(RequestError, match="refused: 401"),
        ):
            stranger.ask("?")
        with (
            JudgeEndpoint(f"{address}/v1", "gpt-4", key=KEY) as other,
            pytest.raises(RequestError, match="refused: 404"),
        ):
            other.ask("?")
    assert [grade.tries for grade in grades.grades] == [5, 5]
    assert grades.tokens[0] > 0 and 0 < grades.tokens[1] <= 2 * 5 * 3
    scores = write_judged(folder, RunDirectory.open(folder).rows(), grades)
    assert scores[0].value == 0.0 and "2 of 2 grades held no number" in scores[0].method
