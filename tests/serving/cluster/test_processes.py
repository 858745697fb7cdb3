"""Worker processes killed under load, and the cluster of `serve --models` (test 53)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from vip_llava.serving.cluster.signing import SECRET_VARIABLE
from vip_llava.serving.settings import ServerSettings

PROGRAM = (sys.executable, "-m", "vip_llava")


class Process:
    """The program as a process, with its stderr."""

    def __init__(self, *words: str, secret: str | None = None) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if secret is not None:
            env[SECRET_VARIABLE] = secret
        self.process = subprocess.Popen(
            [*PROGRAM, *words], stderr=subprocess.PIPE, text=True, env=env
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def heard(self, pattern: str, seconds: float = 60) -> str:
        """Wait for a pattern in its stderr; returns the first group."""
        found = None

        def seen() -> bool:
            nonlocal found
            found = re.search(pattern, self.said)
            return found is not None or self.process.poll() is not None

        eventually(seen, seconds)
        assert found is not None, self.said
        return str(found[1])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """`start(*words, secret=...)` runs the program, which is killed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def begin(*words: str, secret: str | None = None) -> Process:
            process = Process(*words, secret=secret)
            stack.callback(process.close)
            return process

        yield begin


def alive(pid: int) -> bool:
    """Whether the process runs and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ask(client: httpx.Client, model: str, **more: Any) -> httpx.Response:
    message = {"role": "user", "content": "Hello"}
    body = {"model": model, "messages": [message], "max_tokens": 20, **more}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.slow
def test_a_worker_killed_under_load_loses_no_answer(
    cluster: Any, start: Any, tiny_model_folder: Path
) -> None:
    """Eight clients and two workers, kill -9 for one: every request is answered in time."""
    limits = {"port": 0, "limits": {"rate": 0}}
    controller = cluster(ServerSettings.model_validate(limits), expiry=10)
    secret = controller.controller.secret.text()
    place = ("--controller", controller.address, "--models", f"tiny={tiny_model_folder}")
    workers = [start("worker", "--port", "0", *place, secret=secret) for _ in range(2)]
    eventually(lambda: len(controller.addresses()) == 2)
    addresses = [worker.heard(r"listening on (http://\S+)") for worker in workers]
    ended = threading.Event()
    slowest = [0.0]

    def asking(_: int) -> list[tuple[int, str]]:
        found = []
        with httpx.Client(base_url=controller.address, timeout=60, trust_env=False) as client:
            while not ended.is_set():
                began = time.monotonic()
                answer = ask(client, "tiny")
                slowest[0] = max(slowest[0], time.monotonic() - began)
                found.append((answer.status_code, answer.text))
        return found

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(asking, number) for number in range(8)]
        try:
            time.sleep(1.5)
            workers[0].process.send_signal(signal.SIGKILL)
            time.sleep(2)
        finally:
            ended.set()
        answers = [answer for each in running for answer in each.result(timeout=60)]
    assert {status for status, _ in answers} == {200}, set(answers)
    assert len(answers) > 16 and slowest[0] < 20
    assert controller.addresses() == {addresses[1]}
    # A graceful stop: the last worker unregisters before it exits.
    workers[1].process.send_signal(signal.SIGTERM)
    assert workers[1].process.wait(30) == 0
    assert controller.addresses() == set()
    with httpx.Client(base_url=controller.address, trust_env=False) as client:
        assert ask(client, "tiny").status_code == 503


@pytest.mark.slow
def test_one_command_serves_several_models(start: Any, tiny_model_folder: Path) -> None:
    """A killed worker is restarted; no process is left when the command ends."""
    models = f"one={tiny_model_folder},two={tiny_model_folder}"
    limits = ("--limit", "tokens=30", "--limit", "rate=0")
    server = start("serve", "--port", "0", "--models", models, *limits)
    address = server.heard(r"listening on (http://\S+)")
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        assert ask(client, "two").status_code == 503  # expected, but not registered yet
        eventually(lambda: len(client.get("/v1/models").json()["data"]) == 2)
        assert [ask(client, name).status_code for name in ("one", "two", "three")] == [
            200,
            200,
            404,
        ]
        assert ask(client, "one", max_tokens=31).status_code == 422  # limits apply at the workers
        before = worker_pids(server.process.pid)
        assert set(before) == {"one", "two"}
        os.kill(before["two"], signal.SIGKILL)
        lost = ask(client, "two")
        assert lost.status_code == 503 and "retry-after" in lost.headers
        assert ask(client, "one").status_code == 200
        eventually(lambda: ask(client, "two").status_code == 200)
        after = worker_pids(server.process.pid)
        assert after["one"] == before["one"] and after["two"] != before["two"]
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert not any(alive(pid) for pid in after.values())
    secrets = re.findall(r"secret", server.said, re.IGNORECASE)
    assert secrets == []


@pytest.mark.slow
def test_a_failing_model_and_a_killed_server(
    start: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """The other model is served, and its worker exits when the server is killed."""
    models = f"good={tiny_model_folder},bad={tmp_path}"
    server = start("serve", "--port", "0", "--models", models)
    server.heard(r"model (good) is loaded")
    assert server.heard(r"worker of (\w+) can't start") == "bad"
    assert str(tmp_path) in server.said and "Traceback" not in server.said
    pids = worker_pids(server.process.pid)
    assert set(pids) == {"good"}
    server.process.kill()
    eventually(lambda: not alive(pids["good"]), 30)


def worker_pids(parent: int) -> dict[str, int]:
    """The worker process ids of a server by model name."""
    found = {}
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            words = child.cmdline()
            if "worker" in words:
                found[words[words.index("--models") + 1].partition("=")[0]] = child.pid
    return found
