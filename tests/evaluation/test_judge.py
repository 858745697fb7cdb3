"""The judge with a server on loopback: contract, repetition, rate limits, errors, resuming, cost."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.benchmarks.vip_bench import VipBench
from vip_llava.evaluation.judge.endpoint import JudgeEndpoint, checked_address
from vip_llava.evaluation.judge.grading import grade_run
from vip_llava.evaluation.judge.prompt import HINT, PROMPT, parse_score, read_prompt, table_row
from vip_llava.evaluation.judge.score_files import write_judged
from vip_llava.evaluation.results import ResultRow
from vip_llava.evaluation.run_directory import RunDirectory


@dataclass
class Server:
    """A judge that gives 1.0 if the prediction contains the truth, and keeps the requests."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    before: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    """Responses to send first: status, headers, body."""
    say: Callable[[str, int], str] = lambda text, number: (
        "1.0" if truth(text) in said(text) else "0.0"
    )
    slow: float = 0.0


def truth(text: str) -> str:
    return text.splitlines()[-1].split(" | ")[1]


def said(text: str) -> str:
    return text.splitlines()[-1].split(" | ")[2]


@pytest.fixture
def server() -> Iterator[Server]:
    """A uvicorn server on a free port of loopback."""
    state, app, lock = Server(), FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> JSONResponse:
        body = await request.json()
        with lock:
            state.asked.append(body)
            state.keys.append(request.headers.get("authorization"))
            if state.before:
                status, headers, content = state.before.pop(0)
                return JSONResponse(content, status, headers=headers)
            number = len(state.asked)
        if state.slow:
            time.sleep(state.slow)
        text = state.say(body["messages"][0]["content"], number)
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 500, "completion_tokens": 3}
        return JSONResponse({"model": "rules-1", "choices": [{"message": message}], "usage": usage})

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    state.url = f"http://127.0.0.1:{port}/v1"
    yield state
    running.should_exit = True
    thread.join(10)


ROWS = [
    ("v1_0", "4", "it is 4", ["math", "ocr"]),
    ("v1_1", "red<AND>blue", "red", ["rec"]),
    ("v1_2", "a dog", "a dog", ["rec"]),
]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run of three answers and one row that failed."""
    config = {"benchmark": "vip-bench", "model": "mucai/vip"}
    folder = RunDirectory.create_or_resume(tmp_path / "run", config, {})
    rows = [
        ResultRow(
            f"bbox/{name}",
            "bbox",
            right,
            answer=answer,
            facts={"question_id": name, "capability": caps, "question": f"What about {name}?"},
        )
        for name, right, answer, caps in ROWS
    ]
    gone = {"question_id": "v1_3", "capability": ["rel"], "question": "?"}
    rows.append(ResultRow("bbox/v1_3", "bbox", "no", facts=gone, failed="no image", score=0.0))
    for row in rows:
        folder.append(row)
    folder.finish(rows, VipBench.aggregate(rows), {})
    return folder.path


def judge(server: Server, **options: Any) -> JudgeEndpoint:
    return JudgeEndpoint(server.url, "rules", **{"pause": 0.01, **options})


def grades_file(finished: Path) -> Path:
    [path] = (finished / "grades").iterdir()
    return path


def graded(finished: Path, server: Server, times: int = 2, **options: Any) -> Any:
    with judge(server, **options) as client:
        return grade_run(finished, client, PROMPT, times=times)


def test_the_contract(finished: Path, server: Server) -> None:
    graded(finished, server, times=1, key="secret")
    assert len(server.asked) == 3 and set(server.keys) == {"Bearer secret"}
    bodies = {body["messages"][0]["content"]: body for body in server.asked}
    wanted = f"{PROMPT}\nWhat about v1_1? | red <AND> blue | red | "
    body = bodies[wanted]
    assert set(body) == {"model", "messages", "temperature", "max_tokens"}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("rules", 0.0, 3)


def test_scores_files_and_failed_rows(finished: Path, server: Server) -> None:
    """Grades 1, 0, 1 and a failed row: 50 in total; the spread is 0, since all runs are equal."""
    grades = graded(finished, server)
    rows = RunDirectory.open(finished).rows()
    scores = {(s.name, s.group): s for s in write_judged(finished, rows, grades)}
    total = scores["score, bbox", ""]
    assert (total.value, total.count, total.failed) == (0.5, 4, 1)
    assert scores["score, bbox", "recognition"].value == 0.5
    assert (
        scores["score, bbox", "math"].value == 1.0 and scores["score, bbox", "relations"].value == 0
    )
    assert scores["score, bbox", "math+ocr"].value == 1.0
    assert scores["spread over runs, bbox", ""].value == 0.0
    assert "judge rules, mean of 2 runs" in total.method
    results = finished / "results"
    assert (results / "mucai-vip-bbox_rules-cap-score-2runs.csv").read_text() == (
        ',rec,math,ocr,rel,total,std,runs\nmucai-vip,50.0,100.0,100.0,0.0,50.0,0.0,"[50.0, 50.0]"\n'
    )
    together = (results / "mucai-vip-bbox_rules-cap-int-score-2runs.csv").read_text()
    assert together.splitlines()[0] == ",rec,math_ocr,rel,total,std,runs"
    published = json.loads((results / "mucai-vip-bbox_rules-grade-2runs.json").read_text())
    assert published["v1_1"] == {
        "model": ["rules-1"] * 2,
        "content": ["0.0"] * 2,
        "score": [0.0] * 2,
    }
    assert published["v1_3"]["score"] == [0.0, 0.0]
    assert grades.tokens == (6 * 500, 6 * 3)


def test_runs_that_differ_have_a_spread(finished: Path, server: Server) -> None:
    server.say = lambda text, number: "1.0" if number <= 3 else "0.4"
    with judge(server) as client:
        grades = grade_run(finished, client, PROMPT, times=2, parallel=1)
    scores = write_judged(finished, RunDirectory.open(finished).rows(), grades)
    found = {score.name: score.value for score in scores if not score.group}
    assert found["score, bbox"] == pytest.approx(3 * 0.7 / 4)
    assert found["spread over runs, bbox"] == pytest.approx((75 - 30) / 2)


def test_an_interrupted_grading_is_resumed(finished: Path, server: Server) -> None:
    server.before = [(200, {}, {"choices": [{"message": {"content": "0.5"}}]})] * 2
    server.before.append((400, {}, {"error": {"message": "enough"}}))
    with judge(server) as client, pytest.raises(RequestError, match=r"refused: 400 \(enough\)"):
        grade_run(finished, client, PROMPT, times=2, parallel=1)
    kept = grades_file(finished).read_text().splitlines()
    assert len(kept) == 2
    grades_file(finished).write_text("\n".join([*kept, '{"id": "cut']))
    before = len(server.asked)
    grades = graded(finished, server)
    # One more may have been in flight when the first grading stopped.
    asked = len(server.asked)
    assert asked - before in (6 - 2, 6 - 1) and len(grades.grades) == 6
    assert sorted(grade.score for grade in grades.grades) == [0.0, 0.5, 0.5, 1.0, 1.0, 1.0]
    assert graded(finished, server) == grades and len(server.asked) == asked


def test_rate_limits_and_temporary_errors_are_retried(finished: Path, server: Server) -> None:
    waits: list[tuple[float, str]] = []
    server.before = [
        (429, {"retry-after": "0.05"}, {"error": {"message": "slow down"}}),
        (503, {}, {"error": {"message": "busy"}}),
        (500, {"retry-after": "never"}, "oops"),
    ]
    client = judge(server, on_wait=lambda seconds, why: waits.append((seconds, why)))
    with client:
        assert client.ask("a | b | b | ").text == "1.0"
    assert waits[0] == (0.05, "429 (slow down)") and waits[1][1] == "503 (busy)"
    assert 0.02 <= waits[1][0] <= 0.025 and 0.04 <= waits[2][0] <= 0.05


def test_permanent_errors_are_reported(server: Server) -> None:
    server.before = [(429, {}, {"error": {"message": "no"}})] * 3
    with (
        judge(server, tries=3) as client,
        pytest.raises(RequestError, match=r"3 times; last: 429 \(no\)"),
    ):
        client.ask("x")
    server.before = [(401, {}, {"error": {"message": "Incorrect API key"}})]
    with judge(server) as client, pytest.raises(RequestError, match=r"401 \(Incorrect API key"):
        client.ask("x")
    assert len(server.asked) == 4  # a wrong key is not retried
    server.before = [(302, {"location": "http://127.0.0.1:9/steal"}, None)]
    with judge(server, key="k") as client, pytest.raises(RequestError, match="302"):
        client.ask("x")
    server.before = [(200, {}, {"choices": []})]
    with judge(server) as client, pytest.raises(RequestError, match="not a chat completion"):
        client.ask("x")
    server.slow = 0.5
    with (
        judge(server, timeout=0.1, tries=2) as client,
        pytest.raises(RequestError, match="ReadTimeout"),
    ):
        client.ask("a | b | b | ")
    closed = JudgeEndpoint("http://127.0.0.1:9/v1", "m", tries=1)
    with closed as client, pytest.raises(RequestError, match="ConnectError"):
        client.ask("x")


def test_an_error_does_not_wait_for_other_threads(finished: Path, server: Server) -> None:
    """One thread is refused, while another waits a minute for a busy server."""
    server.before = [(429, {"retry-after": "60"}, {}), (400, {}, {"error": {"message": "no"}})]
    began = time.perf_counter()
    with judge(server) as client, pytest.raises(RequestError, match="400"):
        grade_run(finished, client, PROMPT, times=1, parallel=2)
    assert time.perf_counter() - began < 10


def test_replies_without_a_number(finished: Path, server: Server) -> None:
    """The hint and a higher temperature, as published; then the grade counts as 0."""
    server.say = lambda text, number: "0.8" if HINT in text and "v1_0" in text else "well"
    with judge(server) as client:
        grades = grade_run(finished, client, PROMPT, times=1, parallel=1)
    found = {grade.id: (grade.score, grade.tries) for grade in grades.grades}
    assert found == {"bbox/v1_0": (0.8, 2), "bbox/v1_1": (None, 5), "bbox/v1_2": (None, 5)}
    assert [body["temperature"] for body in server.asked[2:7]] == [0.0, 0.5, 1.0, 1.5, 2.0]
    scores = write_judged(finished, RunDirectory.open(finished).rows(), grades)
    assert scores[0].value == pytest.approx(0.8 / 4)
    assert "2 of 3 grades held no number" in scores[0].method


def test_grades_of_another_prompt_are_not_mixed(
    finished: Path, server: Server, tmp_path: Path
) -> None:
    first = graded(finished, server, times=1)
    path = tmp_path / "mine.txt"
    path.write_text("Question | Ground truth | Prediction | Correctness\n")
    with judge(server) as client:
        other = grade_run(finished, client, read_prompt(path), times=1)
    assert len(server.asked) == 6 and first.prompt != other.prompt
    assert len(list((finished / "grades").iterdir())) == 2
    path.write_text("Be nice.")
    with pytest.raises(DataError, match="not a prompt for a judge"):
        read_prompt(path)


def test_runs_of_other_benchmarks_are_refused(tmp_path: Path, server: Server) -> None:
    RunDirectory.create_or_resume(tmp_path / "r", {"benchmark": "visual7w", "model": "m"}, {})
    with judge(server) as client, pytest.raises(DataError, match="visual7w, whose answers need no"):
        grade_run(tmp_path / "r", client, PROMPT)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("0.5", 0.5), (" 1.0 ", 1.0), ("1", 1.0), ("0", 0.0), ("**0.3**", 0.3), (".5", 0.5), ("0.7 since", 0.7), ("1.5", None), ("10", None), ("Score: 1", None), ("", None), ("-1", None), ("0.", 0.0)],
)  # fmt: skip
def test_reading_a_reply(reply: str, score: float | None) -> None:
    assert parse_score(reply) == score


def test_a_line_of_the_table() -> None:
    assert table_row("Q?", "a<OR>b", "c") == "Q? | a <OR> b | c | "


@pytest.mark.parametrize("address", ["judge", "ftp://a/v1", "http://u:p@a/v1", "https://a/v1?k=1", "http:///v1"])  # fmt: skip
def test_invalid_addresses(address: str) -> None:
    with pytest.raises(RequestError):
        checked_address(address, False)


def test_a_key_is_sent_encrypted_only() -> None:
    with pytest.raises(RequestError, match="use https"):
        checked_address("http://judge.example/v1", True)
    assert checked_address("https://judge.example/v1/", True) == "https://judge.example/v1"
    for here in ("http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]/v1"):
        assert checked_address(here, True) == here


def test_the_command(finished: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from vip_llava.cli.main import main

    monkeypatch.setenv("JUDGE_KEY", "k3y")
    command = ["eval", "judge", str(finished), "--endpoint", server.url, "--judge-model", "rules"]
    more = ["--times", "2", "--key-env", "JUDGE_KEY", "--price", "10,20"]
    assert main([*command, *more]) == 0
    ran = capfd.readouterr()
    assert (
        "6 grades, 3000 prompt tokens, 18 reply tokens, cost 0.03" in ran.err
        and "k3y" not in ran.err
    )
    assert "50.0 [" in ran.out and "recognition" in ran.out
    assert set(server.keys) == {"Bearer k3y"}
    page, other = finished.parent / "page.html", finished.parent / "other"
    shutil.copytree(finished, other)
    shutil.rmtree(other / "grades")
    server.say = lambda text, number: "0.4"
    with judge(server) as told_otherwise:
        grades = grade_run(other, told_otherwise, PROMPT, times=1)
    write_judged(other, RunDirectory.open(other).rows(), grades)
    assert main(["eval", "report", str(finished), "-o", str(page)]) == 0
    text = page.read_text("utf-8")
    assert "judge rules, mean of 2 runs" in text and "NO JUDGE" not in text
    assert main(["eval", "report", str(finished), str(other), "-o", str(page)]) == 0
    # The other run's judge says 0.4 of every answer, this one's 1, 0 and 1; the failed row is 0.
    assert "-20.0 [" in page.read_text("utf-8")
    assert main([*command, "--price", "cheap"]) == 2
