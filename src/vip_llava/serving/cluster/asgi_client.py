"""Asking an application within its own process, without a socket: one request, its answer in pieces.

For places where something else carries requests, as between the replicas of a Ray cluster. The
application is told when its asker is gone, as a server would tell it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

__all__ = ["Head", "ask_inside"]

_WAITING_PIECES = 64
_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer: its status and header fields."""

    status: int
    fields: dict[str, str]


async def ask_inside(
    app: ASGIApp, path: str, body: bytes, fields: Mapping[str, str]
) -> AsyncGenerator[Head | bytes]:
    """The head of the answer to a POST, then its pieces; closing it tells the application.

    Raises ConnectionAbortedError where the application ends in the middle of an answer.
    """
    pieces: asyncio.Queue[Message | None] = asyncio.Queue(_WAITING_PIECES)
    gone = asyncio.Event()
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if given:
            return given.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(path, body, fields), receive, pieces.put)
        finally:
            if not gone.is_set():
                await pieces.put(None)

    task = asyncio.ensure_future(run())
    try:
        more = True
        while more:
            message = await pieces.get()
            if message is None:
                await task  # raises what ended it
                raise ConnectionAbortedError("an answer ended in its middle")
            if message["type"] == "http.response.start":
                yield Head(message["status"], _texts(message.get("headers", ())))
                continue
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
    finally:
        gone.set()
        await _ended(task, pieces)


async def _ended(task: asyncio.Future[None], pieces: asyncio.Queue[Message | None]) -> None:
    """Wait for the application to notice, for a while; then it is cancelled."""
    end = asyncio.get_running_loop().time() + _END_SECONDS
    while not task.done() and asyncio.get_running_loop().time() < end:
        while not pieces.empty():  # whatever it still sends, nobody wants
            pieces.get_nowait()
        await asyncio.wait({task}, timeout=0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _scope(path: str, body: bytes, fields: Mapping[str, str]) -> dict[str, Any]:
    own = {"host": "localhost", "content-length": str(len(body))}
    # Host and length are of this call, whatever came with the request.
    kept = {name.lower(): value for name, value in fields.items()} | own
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in kept.items()],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "state": {},
    }


def _texts(headers: Any) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
