"""`call_app`: sends one request to an ASGI application in the same process and streams the response.

Ray carries requests between its processes this way. (httpx's ASGI transport buffers the whole
response.) The application sees a disconnect when the caller stops, as with a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

__all__ = ["ResponseHead", "call_app"]

_MAX_BUFFERED_MESSAGES = 64
_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of a response."""

    status: int
    headers: dict[str, str]


async def call_app(
    app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str]
) -> AsyncGenerator[ResponseHead | bytes]:
    """POST a body; yields the head of the response, then its chunks.

    Closing the generator early disconnects.

    Raises:
        ConnectionAbortedError: the application ended before its response was complete.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue(_MAX_BUFFERED_MESSAGES)
    disconnected = asyncio.Event()
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(path, body, headers), receive, messages.put)
        finally:
            if not disconnected.is_set():
                await messages.put(None)

    task = asyncio.ensure_future(run())
    try:
        more = True
        while more:
            message = await messages.get()
            if message is None:
                await task  # raises the error that ended it
                raise ConnectionAbortedError("the application ended before its response")
            if message["type"] == "http.response.start":
                yield ResponseHead(message["status"], _decode(message.get("headers", ())))
                continue
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
    finally:
        disconnected.set()
        await _stop(task, messages)


async def _stop(task: asyncio.Future[None], messages: asyncio.Queue[Message | None]) -> None:
    """Give the application time to notice the disconnect, then cancel it."""
    end = asyncio.get_running_loop().time() + _END_SECONDS
    while not task.done() and asyncio.get_running_loop().time() < end:
        while not messages.empty():  # unblocks a pending send
            messages.get_nowait()
        await asyncio.wait({task}, timeout=0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _scope(path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    # Host and length belong to this call, not to the request that is carried on.
    own = {"host": "localhost", "content-length": str(len(body))}
    merged = {name.lower(): value for name, value in headers.items()} | own
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
        "headers": [(name.encode(), value.encode()) for name, value in merged.items()],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "state": {},
    }


def _decode(headers: Any) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
