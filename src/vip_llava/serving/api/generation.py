"""Answers on their way: between the event loop of a server and the threads of engines.

Heavy work (images, tensors, the engine) never runs on the loop. An answer that nobody waits for
any more is cancelled, one that takes too long is given up, and one whose engine has ended fails;
nothing waits for ever. It knows no HTTP and no formats.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vip_llava.serving.api.models import Models, ended
from vip_llava.serving.middleware.errors import Problem

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant, Pending
    from vip_llava.engine import TokenEvent
    from vip_llava.prompting.prepare import Prepared
    from vip_llava.serving.settings import Limits

__all__ = ["Answering", "Run"]

T = TypeVar("T")
_LOOK_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 60


class Run:
    """One answer on its way. Its methods belong to the loop; the engine's thread calls `hear`."""

    def __init__(
        self, answering: Answering, assistant: Assistant, prepared: Prepared, *, streamed: bool
    ) -> None:
        self._answering = answering
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._streamed = streamed
        self._finished = False
        self._pending: Pending | None = None
        self._cancelled = False
        self.assistant = assistant
        self.prepared = prepared
        self.began = time.monotonic()
        self.first_token: float | None = None

    def submit(self) -> None:
        """Give it to the engine; makes tensors of the images, so it runs in a thread."""
        pending = self.assistant.submit(self.prepared, self.hear)
        self._pending = pending
        if self._cancelled:  # while it was on its way
            pending.cancel()

    def hear(self, event: TokenEvent) -> None:
        """An event of the engine, in its thread: pass it on and don't wait."""
        if self.first_token is None:
            self.first_token = time.monotonic()
        if self._streamed or event.finish_reason is not None:
            self._loop.call_soon_threadsafe(self._news.put_nowait, event)

    async def events(self) -> AsyncIterator[TokenEvent]:
        """The events up to the last one; raises what ended the answer otherwise."""
        while not self._finished:
            news = await self._news.get()
            if isinstance(news, Exception):
                self._finished = True
                raise news
            self._finished = news.finish_reason is not None
            yield news

    async def answer(self) -> Answer:
        """The whole answer; takes the events that are left."""
        async for _ in self.events():
            pass
        assert self._pending is not None
        return await self._answering.in_thread(self._pending.answer)

    def look(self, now: float, most_seconds: float) -> None:
        """Notice what no event tells: an error, an engine that ended, a limit of time."""
        pending = self._pending
        if self._finished or pending is None:
            return
        if self._answering.models.ended(self.assistant):
            self._fail(ended())
        elif now - self.began > most_seconds:
            self._fail(
                Problem(
                    504,
                    f"the answer was not whole within {most_seconds:g} seconds (answer_seconds)",
                    code="answer_too_slow",
                )
            )
        elif pending.done:
            # Its last event may be on its way to the loop: whatever was sent before comes first.
            self._loop.call_soon(self._ended, pending)

    def _ended(self, pending: Pending) -> None:
        if self._finished or not self._news.empty():
            return
        try:
            pending.answer()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.cancel()
        self._news.put_nowait(error)

    def cancel(self) -> None:
        """Give it up; its place in the engine is free before the next step."""
        self._cancelled = True
        if self._pending is not None:
            self._pending.cancel()


class Answering:
    """What all requests of one server share: places, threads, and somebody who looks after them."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models = models
        self._limits = limits
        self._preparing = ThreadPoolExecutor(limits.preparing, "vip-llava-prepare")
        self._finishing = ThreadPoolExecutor(2, "vip-llava-finish")
        self._runs: set[Run] = set()
        self._usual_seconds = 1.0
        self._watch: asyncio.Task[None] | None = None
        self.places_taken = 0

    async def start(self) -> None:
        """Begin to look after the answers; ends with `stop`."""
        self._watch = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        """Cancel what is left and end the threads."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        for run in self._runs:
            run.cancel()
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._finishing.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold places for so many answers. Problem 503 where there are none left."""
        if self.places_taken + count > self._limits.queue:
            raise Problem(
                503,
                f"the server is busy: {self.places_taken} answers are on their way (queue)",
                code="busy",
                retry_after=min(_LONGEST_RETRY_SECONDS, self._usual_seconds),
            )
        self.places_taken += count
        try:
            yield
        finally:
            self.places_taken -= count

    async def prepare(self, work: Callable[[], T]) -> T:
        """Run heavy work before an answer in a thread; as many at a time as the limits say."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what comes after an answer in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._finishing, work)

    @contextlib.asynccontextmanager
    async def runs(
        self, assistant: Assistant, prepared: list[Prepared], *, streamed: bool
    ) -> AsyncIterator[list[Run]]:
        """Answers to prepared requests, submitted; whatever is unfinished at the end is cancelled."""
        runs = [Run(self, assistant, each, streamed=streamed) for each in prepared]
        self._runs.update(runs)
        try:
            for run in runs:
                await self.prepare(run.submit)
            yield runs
            self._learn(max(time.monotonic() - run.began for run in runs))
        finally:
            for run in runs:
                run.cancel()
            self._runs.difference_update(runs)

    def _learn(self, seconds: float) -> None:
        """How long answers usually take, for telling when to come back."""
        self._usual_seconds += 0.1 * (seconds - self._usual_seconds)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            for run in tuple(self._runs):
                run.look(now, self._limits.answer_seconds)
