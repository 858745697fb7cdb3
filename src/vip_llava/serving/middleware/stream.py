"""Answers to clients that may go away: server-sent events, and the end of work nobody waits for.

It knows connections, not what is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from vip_llava.serving.middleware.errors import Problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "merged", "unless_gone"]

T = TypeVar("T")
_STILL_HERE_SECONDS = 15.0
_STILL_HERE = b": the answer is on its way\n\n"


class EventStream(Response):
    """Server-sent events of a generator, which is closed as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        media_type: str | None = None,
        still_here: bytes = _STILL_HERE,
        every: float = _STILL_HERE_SECONDS,
    ) -> None:
        """still_here: what is sent in `every` second without an event."""
        fields = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers=fields, media_type=media_type)
        # The length is not known, and an empty body must not be promised.
        self.raw_headers = [each for each in self.raw_headers if each[0] != b"content-length"]
        self._events = events
        self._still_here, self._every = still_here, every

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until the client goes."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with contextlib.aclosing(self._events):
            await send(start)
            await _first_of(self._send_all(send), _gone(receive))

    async def _send_all(self, send: Send) -> None:
        coming: asyncio.Future[bytes] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(self._events))
                done, _ = await asyncio.wait({coming}, timeout=self._every)
                # Something now and then, or proxies take a long wait for a dead connection.
                part = coming.result() if done else self._still_here
                coming = None if done else coming
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except StopAsyncIteration:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await coming


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client goes; then Problem 499.

    `receive` is the connection's after the whole body has been taken.
    """
    found: list[T] = []

    async def kept() -> None:
        found.append(await work)

    await _first_of(kept(), _gone(receive))
    if not found:
        raise Problem(499, "the client has gone", code="client_gone")
    return found[0]


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T, None]:
    """What several iterators give, as it comes; the first error ends all."""
    news: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue()

    async def pump(source: AsyncIterator[T]) -> None:
        try:
            async for value in source:
                news.put_nowait((value, None))
        except Exception as error:
            news.put_nowait((None, error))
        else:
            news.put_nowait((None, StopAsyncIteration()))

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    left = len(tasks)
    try:
        while left:
            value, error = await news.get()
            if isinstance(error, StopAsyncIteration):
                left -= 1
            elif error is not None:
                raise error
            elif value is not None:
                yield value
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Wait for the first to end and cancel the others, waiting for that too; raises its error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()
