"""Asks many requests with a bounded number in flight, and reports the failures one by one.

Threads open, draw and tokenize images while the model answers earlier requests. A request that
fails does not affect the others. Outcomes come in the order of the requests, so that what is
computed from them depends on neither the batch size nor the timing. It does not know what is asked.
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

_THREADS = 4
_BATCHES_AHEAD = 4  # how many batches may be prepared before their turn

BuildRequest = Callable[[], "Request | Mapping[str, Any]"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The final question and its answer, or the error why there is none."""

    question: str
    answer: Answer | VipLlavaError


def ask_each(
    assistant: Assistant,
    builders: Sequence[BuildRequest],
    *,
    batch_size: int,
    sampling: Mapping[str, Any],
) -> Generator[tuple[int, Outcome]]:
    """The index and outcome of each request, in order; holds a bounded number of images.

    builders: return requests as `Assistant.ask_many` takes them; a `VipLlavaError` that one raises
    is its outcome. batch_size: how many requests run together. sampling: as for `Assistant.ask`.
    """

    def prepare(build: BuildRequest) -> Prepared:
        return assistant.prepare(build(), **sampling)

    preparing: dict[int, Future[Prepared]] = {}
    running: dict[int, tuple[str, PendingAnswer]] = {}
    outcomes: dict[int, Outcome] = {}
    started = 0
    pool = ThreadPoolExecutor(min(_THREADS, batch_size), thread_name_prefix="eval-prepare")
    try:
        for index in range(len(builders)):
            ahead = min(len(builders), index + _BATCHES_AHEAD * batch_size)
            for each in range(started + len(preparing), ahead):
                preparing[each] = pool.submit(prepare, builders[each])
            while index not in outcomes:
                # Wait for a thread only if nothing runs.
                while preparing and len(running) < batch_size:
                    if running and not preparing[started].done():
                        break
                    _start(assistant, started, preparing.pop(started), running, outcomes)
                    started += 1
                if running:
                    assistant.backend.wait_any([p.completion for _, p in running.values()])
                    _collect(running, outcomes)
            yield index, outcomes.pop(index)
    finally:
        pool.shutdown(cancel_futures=True)
        for _, pending in running.values():
            pending.cancel()


def _start(
    assistant: Assistant,
    index: int,
    future: Future[Prepared],
    running: dict[int, tuple[str, PendingAnswer]],
    outcomes: dict[int, Outcome],
) -> None:
    question = ""
    try:
        prepared = future.result()
        question = prepared.question
        running[index] = (question, assistant.submit(prepared))
    except VipLlavaError as error:
        outcomes[index] = Outcome(question, error)


def _collect(running: dict[int, tuple[str, PendingAnswer]], outcomes: dict[int, Outcome]) -> None:
    """Move the requests that are done to `outcomes`."""
    for index in [index for index, (_, pending) in running.items() if pending.done]:
        question, pending = running.pop(index)
        try:
            outcomes[index] = Outcome(question, pending.answer())
        except VipLlavaError as error:
            outcomes[index] = Outcome(question, error)
