"""`vip-llava serve` as a process: start, answers, drain and errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

Program = Callable[..., Any]
KEY = "a-key-of-enough-characters"


@contextmanager
def running(*words: str, env: dict[str, str] | None = None) -> Iterator[tuple[Any, str]]:
    """The process and its address; a process that still runs at the end is killed."""
    command = [sys.executable, "-m", "vip_llava", "serve", "--port", "0", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.search(r"http://\S+", first)
        assert found, first + process.stderr.read()
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until_ready(client: httpx.Client) -> None:
    for _ in range(300):
        if client.get("/ready").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("not ready within 30 seconds")


@pytest.mark.slow
def test_serve_answers_and_drains_on_a_stop(tiny_model_folder: Path) -> None:
    words = ("--model", str(tiny_model_folder), "--name", "tiny")
    env = {"VIP_LLAVA_API_KEY": KEY}
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        running(*words, env=env) as (process, address),
        httpx.Client(base_url=address, headers=headers, timeout=30) as client,
    ):
        until_ready(client)
        message = {"role": "user", "content": "a secret question"}
        body = {"model": "tiny", "messages": [message], "max_tokens": 1000, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)  # whole, though the stop came in its middle
        assert rest[-2:] == ["data: [DONE]", ""]
        assert json.loads(rest[-4].removeprefix("data: "))["choices"][0]["finish_reason"]
        assert process.wait(20) == 0
        log = process.stderr.read()
    assert "POST /v1/chat/completions 200" in log
    assert "secret question" not in log
    assert KEY not in log
    assert "127.0.0.1:" not in log


def test_a_model_that_fails_to_load_ends_the_server(program: Program, tmp_path: Path) -> None:
    ran = program("serve", "--port", "0", "--model", str(tmp_path / "none"))
    assert ran.code == 2
    assert "no such folder" in ran.err


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--host", "0.0.0.0"], "API key"),
        (["--limit", "tokens"], "--limit tokens=2048"),
        (["--limit", "tokenz=5"], "unknown setting; known are body_bytes"),
        (["--limit", "tokens=0.5"], "limits.tokens"),
        (["--origin", "*"], "must be an origin"),
        (["--fetch-host", "10.0.0.1"], "is not a host name"),
        (["--port", "99999"], "port"),
    ],
)
def test_wrong_settings_are_named(program: Program, words: list[str], printed: str) -> None:
    ran = program("serve", "--check", *words)
    assert ran.code == 2
    assert printed in ran.err


def test_check_prints_no_key(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n{KEY}\n\n{KEY}-2\n")
    monkeypatch.setenv("VIP_LLAVA_API_KEY", f"{KEY}-3")
    ran = program(
        "serve", "--check", "--host", "0.0.0.0", "--api-key-file", file, "--limit", "tokens=2_048"
    )
    printed = json.loads(ran.out)
    assert ran.code == 0
    assert (printed["api_keys"], printed["limits"]["tokens"], printed["host"]) == (
        3,
        2048,
        "0.0.0.0",
    )
    assert KEY not in ran.out


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "httpx", "prometheus_client"])
def test_a_missing_library_names_the_extra(
    program: Program, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    ran = program("serve", "--check")
    assert ran.code == 1
    assert f"{library}: pip install 'vip-llava[serve]'" in ran.err
    assert program("draw", "--help").code == 0
