"""Asks many items together, and tells an item that can't be asked from one that can.

Images are opened, drawn and worded by threads while the model answers others. An item that can't be
asked gives its reason and takes nobody else with it. Results come in the items' order, so that what
is made of them depends on neither the batch size nor on who is faster. It deliberately does not know
what is asked or how answers are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vip_llava.errors import VipLlavaError

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant, PendingAnswer
    from vip_llava.prompting.prepare import Prepared, Request

__all__ = ["Outcome", "ask_each"]

Make = Callable[[], "Request | Mapping[str, Any]"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: the question as it was worded, and the answer or why there is none."""

    question: str
    answer: Answer | VipLlavaError


_THREADS = 4
_AHEAD = 4  # times the batch size: how far the newest request may be ahead of the oldest answer


def ask_each(
    assistant: Assistant,
    makes: Sequence[Make],
    *,
    batch_size: int,
    sampling: Mapping[str, Any],
) -> Generator[tuple[int, Outcome], None, None]:
    """The answer of every request, or why there is none, with its place and in order of places.

    makes: build the requests, as `Assistant.ask_many` takes them; a `VipLlavaError` raised there is
    the reason, too. batch_size: how many run together. sampling: as for `Assistant.ask`. Memory holds a bounded number of images.
    """

    def prepared(make: Make) -> Prepared:
        return assistant.prepare(make(), **sampling)

    pool = ThreadPoolExecutor(min(_THREADS, batch_size), thread_name_prefix="eval-prepare")
    line = _Line(assistant, batch_size)
    try:
        given = 0
        for place in range(len(makes)):
            while given < min(len(makes), place + _AHEAD * batch_size):
                line.waiting.append(pool.submit(prepared, makes[given]))
                given += 1
            yield place, line.result(place)
    finally:
        pool.shutdown(cancel_futures=True)
        line.cancel()


class _Line:
    """Requests in order: waiting for threads, running in the engine, done."""

    def __init__(self, assistant: Assistant, batch_size: int) -> None:
        self._assistant, self._most = assistant, batch_size
        self.waiting: list[Future[Prepared]] = []
        self._begun = 0
        self._running: dict[int, PendingAnswer] = {}
        self._questions: dict[int, str] = {}
        self._done: dict[int, Outcome] = {}

    def result(self, place: int) -> Outcome:
        """What became of a request; runs others meanwhile."""
        while place not in self._done:
            self._begin()
            if self._running:
                self._assistant.backend.wait_any([p.completion for p in self._running.values()])
                self._collect()
        return self._done.pop(place)

    def cancel(self) -> None:
        """Nobody waits for the rest any more."""
        for pending in self._running.values():
            pending.cancel()

    def _begin(self) -> None:
        """Fill the batch with what is ready; wait for a thread only if nothing runs."""
        while self._begun < len(self.waiting) and len(self._running) < self._most:
            future = self.waiting[self._begun]
            if self._running and not future.done():
                return
            place, self._begun = self._begun, self._begun + 1
            self.waiting[place] = Future()  # the list keeps its length, the images go
            try:
                prepared = future.result()
                self._questions[place] = prepared.question
                self._running[place] = self._assistant.submit(prepared)
            except VipLlavaError as error:
                self._end(place, error)
                return

    def _collect(self) -> None:
        for place in [p for p, pending in self._running.items() if pending.done]:
            try:
                self._end(place, self._running.pop(place).answer())
            except VipLlavaError as error:
                self._end(place, error)

    def _end(self, place: int, answer: Answer | VipLlavaError) -> None:
        self._done[place] = Outcome(self._questions.pop(place, ""), answer)
