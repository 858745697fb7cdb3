"""Clients that disconnect, read slowly or send nothing, and engines that die, affect no other client."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from vip_llava import Assistant, load
from vip_llava.serving.api.app import create_app
from vip_llava.serving.settings import make_settings

LONG = 1500  # tokens: several seconds of the tiny model


def body(question: str = "Hello?", **keys: Any) -> bytes:
    message = {"role": "user", "content": question}
    return json.dumps({"model": "tiny", "messages": [message], "max_tokens": LONG, **keys}).encode()


@contextmanager
def raw(api: Any, content: bytes) -> Iterator[socket.socket]:
    """A connection with a chat request sent on it."""
    at = urlsplit(api.address)
    assert at.hostname
    assert at.port
    with socket.create_connection((at.hostname, at.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            + f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        yield connection


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def idle(assistant: Assistant) -> bool:
    stats = assistant.backend.engine.stats()
    return stats.running == stats.waiting == stats.kv_cache_tokens_used == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_frees_the_sequence_within_a_step(
    serve: Callable[..., Any], tiny: Assistant, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    api = serve(limits={"tokens": LONG})
    noticed: list[int] = []
    real = tiny.backend.engine._cancel

    def cancel(row: Any) -> None:
        real(row)
        noticed.append(tiny.backend.engine.stats().steps)  # including a step in progress

    monkeypatch.setattr(tiny.backend.engine, "_cancel", cancel)
    before = tiny.backend.engine.stats().steps
    with raw(api, body(stream=stream)) as connection:
        until(lambda: tiny.backend.engine.stats().steps > before + 5)
        if stream:
            assert connection.recv(10) == b"HTTP/1.1 2"
        left = tiny.backend.engine.stats().steps
    until(lambda: bool(noticed) and idle(tiny))
    ended = tiny.backend.engine.stats().steps
    assert ended - noticed[0] <= 1
    assert ended - left < LONG / 2  # long before the complete answer
    until(lambda: "vip_llava_answers_open 0.0" in api.client.get("/metrics").text)


@pytest.mark.parametrize("after", ["nothing", "start"])
def test_a_stream_ends_if_its_client_is_gone_before_it_starts(tiny: Assistant, after: str) -> None:
    """The client disconnects between the validation of its request and the start of the stream."""
    app = create_app({"tiny": tiny}, make_settings(limits={"tokens": LONG, "rate": 0}))

    async def ask() -> None:
        sent = asyncio.Event()
        bodies = [{"type": "http.request", "body": body(stream=True), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not bodies:
                await sent.wait()
                return {"type": "http.disconnect"}
            return bodies.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.set()
            if after == "nothing":
                raise ConnectionResetError("an injected end")

        fields = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        fields.append((b"content-length", b"100"))
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        scope |= {"headers": fields, "query_string": b"", "client": None, "state": {}}
        async with app.router.lifespan_context(app):
            with contextlib.suppress(OSError):
                await app(scope, receive, send)  # type: ignore[arg-type]
            generations = app.state.generations
            assert generations.reserved == 0
            assert not generations.running
            await asyncio.to_thread(until, lambda: idle(tiny))

    before = tiny.backend.engine.stats().steps
    asyncio.run(ask())
    assert tiny.backend.engine.stats().steps - before < LONG / 2


def test_queued_requests_of_disconnected_clients_never_run(
    serve: Callable[..., Any], tiny: Assistant
) -> None:
    """Their requests are queued for the prepare thread."""
    api = serve(limits={"tokens": LONG, "preparing": 1})
    hold = threading.Event()
    generations = api.app.state.generations
    blocked = generations._prepare_executor.submit(hold.wait)
    before = tiny.backend.engine.stats().steps
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(raw(api, body(stream=True)))
        until(lambda: generations.reserved == 5)
    until(lambda: generations.reserved == 0)
    hold.set()
    blocked.result(5)
    api.told("Hello?", max_tokens=2)
    until(lambda: idle(tiny))
    assert tiny.backend.engine.stats().steps - before <= 5


def test_a_storm_of_disconnects(serve: Callable[..., Any], tiny: Assistant) -> None:
    api = serve(limits={"tokens": LONG, "queue": 200})
    wanted = api.told("Hello?", max_tokens=20)["choices"]
    rng = random.Random(3)
    waits = [rng.random() * 0.3 for _ in range(60)]

    def leave(wait: float) -> None:
        with raw(api, body(f"Question {wait}?", stream=wait > 0.1)):
            time.sleep(wait)

    with ThreadPoolExecutor(20) as pool:
        storm = [pool.submit(leave, wait) for wait in waits]
        kept = [pool.submit(api.told, "Hello?", max_tokens=20) for _ in range(5)]
        for one in (*storm, *kept):
            one.result(60)
    assert all(one.result()["choices"] == wanted for one in kept)
    until(lambda: idle(tiny))
    until(lambda: api.app.state.generations.reserved == 0)
    assert api.told("Hello?", max_tokens=20)["choices"] == wanted


def test_a_slow_reader_is_dropped(serve: Callable[..., Any]) -> None:
    api = serve(limits={"write_seconds": 0.5, "tokens": LONG})
    noise = np.random.default_rng(0).integers(0, 255, (1400, 1400, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    kind = {"content-type": "image/png"}
    left = api.client.post("/v1/uploads", content=file.getvalue(), headers=kind).json()["id"]
    content = [
        {"type": "image_url", "image_url": {"url": f"upload:{left}"}},
        {"type": "text", "text": "What is this?"},
    ]
    asked = {
        "model": "tiny",
        "max_tokens": 3,
        "messages": [{"role": "user", "content": content}],
        "return_image": True,
    }
    at = urlsplit(api.address)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect((at.hostname, at.port))
        text = json.dumps(asked).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + head.encode() + text
        )
        until(lambda: 'status="200"' in chat_counts(api))  # answered, but not read
        assert api.told("Hello?")["choices"]  # other clients are not affected
        server = api.app.state.server
        until(lambda: len(server.server_state.connections) == 1)  # the client's own
        head_text, _, rest = read_all(connection).partition(b"\r\n\r\n")
        promised = int(head_text.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert len(rest) < promised  # unread data is discarded


def read_all(connection: socket.socket) -> bytes:
    """All bytes until the connection ends."""
    parts = []
    try:
        while part := connection.recv(1_000_000):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def chat_counts(api: Any) -> str:
    lines = api.client.get("/metrics").text.splitlines()
    return "\n".join(line for line in lines if "requests_total" in line and "chat" in line)


def test_a_thousand_idle_connections(serve: Callable[..., Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"only {hard} files may be open here; both ends of 1,000 connections need more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    try:
        api = serve(limits={"connections": 1100, "client_connections": 1100, "header_seconds": 4})
        wanted = api.told("Hello?")["choices"]
        at = urlsplit(api.address)
        with ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(socket.create_connection((at.hostname, at.port), timeout=20))  # type: ignore[arg-type]
            server = api.app.state.server
            until(lambda: len(server.server_state.connections) >= 1000)
            began = time.monotonic()
            assert api.told("Hello?")["choices"] == wanted
            assert time.monotonic() - began < 10
            until(lambda: len(server.server_state.connections) <= 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_requests_of_a_dead_engine_fail(serve: Callable[..., Any], tiny_model_folder: Path) -> None:
    mortal = load(tiny_model_folder)
    other = load(tiny_model_folder)
    api = serve(assistants={"tiny": mortal, "other": other}, limits={"tokens": LONG})
    assert api.client.get("/ready").status_code == 200

    def fail() -> bool:
        raise MemoryError("an injected end")

    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(api.ask, "Hello?", max_tokens=LONG)
        streamed = pool.submit(api.ask, "Hello?", max_tokens=LONG, stream=True)
        until(lambda: mortal.backend.engine.stats().running == 2)
        mortal.backend.engine.step = fail  # type: ignore[method-assign]
        assert whole.result(10).json()["error"]["code"] == "engine_ended"
        assert '"code":"engine_ended"' in streamed.result(10).text
    assert whole.result().status_code == 503
    assert api.refused("Hello?")[:2] == (503, "engine_ended")
    assert api.client.get("/ready").status_code == 503
    assert api.client.get("/health").status_code == 200
    api.told("Hello?", model="other")


def test_a_model_that_overflows_fails_only_its_requests(
    serve: Callable[..., Any], tiny: Assistant, tiny_model_folder: Path, caplog: Any
) -> None:
    broken = load(tiny_model_folder)
    with torch.no_grad():
        broken.backend.model.get_output_embeddings().weight.fill_(float("nan"))
    broken.backend.engine.invalidate()
    api = serve(assistants={"tiny": tiny, "broken": broken})
    wanted = api.told("Hello?")["choices"]
    assert api.refused("Hello?", model="broken")[:2] == (500, "internal_error")
    assert "not finite" in caplog.text  # for the operator
    streamed = api.ask("Hello?", model="broken", stream=True)
    assert '"code":"internal_error"' in streamed.text
    assert "finite" not in streamed.text
    assert api.told("Hello?")["choices"] == wanted
