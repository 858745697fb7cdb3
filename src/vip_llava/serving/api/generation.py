"""Running generations: the bridge between a server's event loop and the engines' threads.

Images, tensors and engine calls never run on the loop. A generation is cancelled when its request
ends, and it fails when it takes too long or its engine has died. It does not know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vip_llava.serving.api.models import ServedModels, engine_dead
from vip_llava.serving.middleware.errors import ApiError

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant, PendingAnswer
    from vip_llava.engine import TokenEvent
    from vip_llava.prompting.prepare import Prepared
    from vip_llava.serving.settings import Limits

__all__ = ["Generation", "GenerationPool"]

T = TypeVar("T")
_WATCH_SECONDS = 0.1
_MAX_RETRY_SECONDS = 60


class Generation:
    """One running answer. All methods belong to the loop, except `submit` and `on_event`."""

    def __init__(
        self, pool: GenerationPool, assistant: Assistant, prepared: Prepared, *, streamed: bool
    ) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._streamed = streamed
        self._finished = False
        self._pending: PendingAnswer | None = None
        self._cancelled = False
        self.assistant = assistant
        self.prepared = prepared
        self.started = time.monotonic()
        self.first_token: float | None = None

    def submit(self) -> None:
        """Submit to the engine; it creates image tensors, so it runs in a thread."""
        pending = self.assistant.submit(self.prepared, self.on_event)
        self._pending = pending
        if self._cancelled:  # while submitting
            pending.cancel()

    def on_event(self, event: TokenEvent) -> None:
        """Hand an event of the engine's thread to the loop without blocking."""
        if self.first_token is None:
            self.first_token = time.monotonic()
        if self._streamed or event.finish_reason is not None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def events(self) -> AsyncIterator[TokenEvent]:
        """The events up to the last one; raises the error that ended the generation."""
        while not self._finished:
            item = await self._queue.get()
            if isinstance(item, Exception):
                self._finished = True
                raise item
            self._finished = item.finish_reason is not None
            yield item

    async def answer(self) -> Answer:
        """The whole answer; consumes the remaining events."""
        async for _ in self.events():
            pass
        assert self._pending is not None
        return await self._pool.finish(self._pending.answer)

    def check(self, now: float, max_seconds: float) -> None:
        """Detect an end without a last event: an error, a dead engine, a time limit."""
        pending = self._pending
        if self._finished or pending is None:
            return
        if self._pool.models.is_dead(self.assistant):
            self._fail(engine_dead())
        elif now - self.started > max_seconds:
            self._fail(
                ApiError(
                    504,
                    f"the answer took longer than {max_seconds:g} seconds (answer_seconds)",
                    code="answer_too_slow",
                )
            )
        elif pending.done:
            # Its last event may still be scheduled on the loop; earlier callbacks run first.
            self._loop.call_soon(self._check_error, pending)

    def _check_error(self, pending: PendingAnswer) -> None:
        if self._finished or not self._queue.empty():
            return
        try:
            pending.answer()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.cancel()
        self._queue.put_nowait(error)

    def cancel(self) -> None:
        """Stop; the engine frees the sequence before its next step."""
        self._cancelled = True
        if self._pending is not None:
            self._pending.cancel()


class GenerationPool:
    """What all requests of a server share: the admission limit, the threads and a watchdog."""

    def __init__(self, models: ServedModels, limits: Limits) -> None:
        self.models = models
        self.running: set[Generation] = set()
        self.reserved = 0
        """Answers running or waiting, as counted by `reserve`."""
        self._limits = limits
        self._prepare_executor = ThreadPoolExecutor(limits.preparing, "vip-llava-prepare")
        self._finish_executor = ThreadPoolExecutor(2, "vip-llava-finish")
        self._mean_seconds = 1.0
        self._watchdog: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the watchdog; `stop` ends it."""
        self._watchdog = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Cancel all generations and end the threads."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watchdog
        for generation in self.running:
            generation.cancel()
        self._prepare_executor.shutdown(wait=False, cancel_futures=True)
        self._finish_executor.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Reserve capacity for `count` answers. Raises ApiError 503 if the queue is full."""
        if self.reserved + count > self._limits.queue:
            raise ApiError(
                503,
                f"the server is busy: {self.reserved} answers are running or waiting (queue)",
                code="busy",
                retry_after=min(_MAX_RETRY_SECONDS, self._mean_seconds),
            )
        self.reserved += count
        try:
            yield
        finally:
            self.reserved -= count

    async def prepare(self, work: Callable[[], T]) -> T:
        """Run work that precedes an answer in one of the `preparing` threads."""
        return await asyncio.get_running_loop().run_in_executor(self._prepare_executor, work)

    async def finish(self, work: Callable[[], T]) -> T:
        """Run work that follows an answer in one of two threads."""
        return await asyncio.get_running_loop().run_in_executor(self._finish_executor, work)

    @contextlib.asynccontextmanager
    async def run(
        self, assistant: Assistant, prepared: list[Prepared], *, streamed: bool
    ) -> AsyncIterator[list[Generation]]:
        """Submit prepared requests; at the end of the context unfinished ones are cancelled."""
        generations = [Generation(self, assistant, each, streamed=streamed) for each in prepared]
        self.running.update(generations)
        try:
            for each in generations:
                await self.prepare(each.submit)
            yield generations
            seconds = max(time.monotonic() - each.started for each in generations)
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        finally:
            for each in generations:
                each.cancel()
            self.running.difference_update(generations)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            for each in tuple(self.running):
                each.check(now, self._limits.answer_seconds)
