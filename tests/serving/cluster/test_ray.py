"""A local Ray cluster with two replicas of a tiny model, one of them killed under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import ValidationError

from vip_llava import load

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'vip-llava[cluster]'")

MARK = "VIP_LLAVA_TEST_MARK"


class Running:
    """The cluster's process and its client."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.mark = secrets.token_hex(8)
        self.address = f"http://127.0.0.1:{port}"
        env = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", MARK: self.mark}
        program = Path(__file__).with_name("ray_program.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), str(port), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self.told = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.client = httpx.Client(base_url=self.address, timeout=60, trust_env=False)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told += line

    def wait(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "ready\n":
                return
        raise AssertionError(self.told[-4000:])

    def replicas(self) -> set[int]:
        """The process ids of the replicas of this cluster."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = "ServeReplica:default:model-0" in " ".join(process.cmdline())
                if ours and process.environ().get(MARK) == self.mark:
                    found.add(process.pid)
        return found

    def ask(self, client: httpx.Client | None = None, **more: Any) -> httpx.Response:
        message = {"role": "user", "content": "Hello"}
        body = {"model": "tiny", "messages": [message], "max_tokens": 30, **more}
        return (client or self.client).post("/v1/chat/completions", json=body)

    def close(self) -> None:
        self.client.close()
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            self.process.stdout.close()
            self.process.stderr.close()


@pytest.fixture(scope="module")
def running(tiny_model_folder: Path) -> Iterator[Running]:
    found = Running(tiny_model_folder)
    try:
        found.wait()
        yield found
    finally:
        found.close()


@pytest.mark.slow
def test_a_ray_cluster_answers_like_one_server(running: Running, tiny_model_folder: Path) -> None:
    right = load(tiny_model_folder).ask(None, "Hello", max_new_tokens=30).text
    assert [one["id"] for one in running.client.get("/v1/models").json()["data"]] == ["tiny"]
    assert running.ask().json()["choices"][0]["message"]["content"] == right
    streamed = running.ask(stream=True).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == right
    assert streamed.endswith("data: [DONE]\n\n")
    legacy = {"model": "tiny", "prompt": "Hello", "temperature": 0, "max_new_tokens": 30}
    pieces = running.client.post("/worker_generate_stream", json=legacy).content.split(b"\0")
    assert json.loads(pieces[-2]) == {"text": "Hello" + right, "error_code": 0}
    for more, status in (
        ({"model": "other"}, 404),
        ({"max_tokens": 41}, 422),  # a limit of the replicas
        ({"unknown": 1}, 422),
    ):
        refused = running.ask(**more)
        assert refused.status_code == status
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.slow
def test_a_replica_killed_under_load_loses_no_answer(running: Running) -> None:
    """Six clients, and kill -9 for one of two replicas: no answer is lost, and Ray replaces it."""
    before = running.replicas()
    assert len(before) == 2
    ended = threading.Event()
    slowest = [0.0]

    def asking(number: int) -> list[tuple[int, str]]:
        found = []
        with httpx.Client(base_url=running.address, timeout=60, trust_env=False) as client:
            while not ended.is_set():
                began = time.monotonic()
                answer = running.ask(client, stream=number % 2 == 0)
                slowest[0] = max(slowest[0], time.monotonic() - began)
                whole = number % 2 or answer.text.endswith("data: [DONE]\n\n")
                # A started stream may end with an error event, but it is never cut off.
                told = "worker_lost" in answer.text
                found.append((answer.status_code, "whole" if whole else f"told: {told}"))
        return found

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(asking, number) for number in range(6)]
        try:
            time.sleep(1.5)
            os.kill(min(before), signal.SIGKILL)
            time.sleep(4)
        finally:
            ended.set()
        answers = [answer for each in asked for answer in each.result(timeout=90)]
    assert len(answers) >= 6 and slowest[0] < 60
    assert {status for status, _ in answers} == {200}
    assert {how for _, how in answers} <= {"whole", "told: True"}
    assert sum(how != "whole" for _, how in answers) <= 3
    end = time.monotonic() + 90
    while len(running.replicas()) < 2:
        assert time.monotonic() < end, "no replica came in place of the killed one"
        time.sleep(0.2)
    assert running.ask().status_code == 200


def test_a_cancelled_request_frees_the_replica(tiny_model_folder: Path) -> None:
    """The replica class without Ray: closing a response cancels its generation."""
    from vip_llava.serving.cluster.ray_serve import ClusterSettings, Replica

    content = ClusterSettings(models={"tiny": str(tiny_model_folder)}).model_dump(mode="json")
    message = {"role": "user", "content": "Hello"}
    asked = {"model": "tiny", "messages": [message], "max_tokens": 1000, "stream": True}
    fields = {"content-type": "application/json"}

    async def ask_and_leave() -> None:
        replica = Replica.__new__(Replica)
        await replica.__init__("tiny", str(tiny_model_folder), content)  # type: ignore[misc]
        (assistant,) = replica._models.loaded().values()
        body = json.dumps(asked).encode()
        answer = replica.answer("/v1/chat/completions", body, fields)
        status, _ = await anext(answer)
        assert status == 200 and b"chat.completion.chunk" in await anext(answer)
        assert (
            assistant.backend.engine.stats().running + assistant.backend.engine.stats().waiting == 1
        )
        await answer.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            while assistant.backend.engine.stats().running:
                await asyncio.sleep(0.02)
        replica.check_health()
        assistant.backend.engine.stop()  # like a dead engine
        with pytest.raises(RuntimeError, match="engine of a model has died"):
            replica.check_health()
        await replica._exit_stack.aclose()

    asyncio.run(ask_and_leave())


def test_the_ingress_requires_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from vip_llava.serving.cluster.asgi_client import ResponseHead, call_app
    from vip_llava.serving.cluster.ray_serve import ClusterSettings, _ingress_app

    monkeypatch.setenv("VIP_LLAVA_API_KEY", "a-key-of-the-operator")
    app = _ingress_app(ClusterSettings(), {})

    async def status(**fields: str) -> int:
        async with contextlib.aclosing(
            call_app(app, "/v1/chat/completions", b"{}", fields)
        ) as answer:
            head = await anext(answer)
            assert isinstance(head, ResponseHead)
            return head.status

    assert asyncio.run(status()) == 401
    assert asyncio.run(status(authorization="Bearer a-key-of-the-operator")) == 503


def test_cluster_settings_are_validated() -> None:
    from vip_llava.serving.cluster.ray_serve import ClusterSettings, build

    found = ClusterSettings.model_validate({"min_replicas": "0", "max_replicas": "3"})
    assert build(found) is not None
    for wrong in (
        {"min_replicas": 5},
        {"models": {}},
        {"models": {"a b": "x"}},
        {"max_replicas": 0},
        {"target_requests": 0},
        {"replicas": 2},
    ):
        with pytest.raises(ValidationError):
            ClusterSettings.model_validate(wrong)
