"""Streamed responses, and work that is cancelled when its client disconnects.

It does not know what is streamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus

from vip_llava.serving.middleware.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["cancel_on_disconnect", "event_stream", "merge"]

T = TypeVar("T")
_PING_SECONDS = 15.0

# A stopping server lets running streams finish (`drain_seconds`); the library would end them.
AppStatus.enable_automatic_graceful_drain = False


def _comment() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


def event_stream(
    events: AsyncIterator[str] | AsyncIterator[bytes],
    *,
    media_type: str = "text/event-stream",
    ping: Callable[[], Any] = _comment,
    ping_seconds: float = _PING_SECONDS,
) -> EventSourceResponse:
    """A response that sends strings as server-sent events, and bytes as they are.

    The generator is cancelled when the client disconnects. `ping()` returns what is sent every
    `ping_seconds`, so that proxies keep the connection while the first event is awaited.
    """
    return EventSourceResponse(
        events,
        media_type=media_type,
        sep="\n",
        ping=ping_seconds,
        ping_message_factory=ping,
    )


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects.

    receive: the connection's channel after the whole body has been read.

    Raises:
        ApiError: 499 after a disconnect.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    raise ApiError(499, "the client disconnected", code="client_gone")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T, None]:
    """The items of several iterators in order of arrival; the first error ends all of them."""
    items: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue()

    async def pump(source: AsyncIterator[T]) -> None:
        try:
            async for value in source:
                items.put_nowait((value, None))
        except Exception as error:
            items.put_nowait((None, error))
        else:
            items.put_nowait((None, StopAsyncIteration()))

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    left = len(tasks)
    try:
        while left:
            value, error = await items.get()
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
