"""Passing a request on to one of several workers, so that the death of one is not the end of it.

A worker that can't be reached, or dies before the first byte of its answer went out, is replaced by
another; after that byte the client is told in the form that it reads. Nobody waits for a worker that
is known to be gone. What a worker is and how it is reached is left to `Backend`s: of a controller they
are addresses, of a Ray cluster they are replicas.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response, StreamingResponse

from vip_llava.serving.cluster.legacy import ERROR_CODE, line
from vip_llava.serving.middleware.errors import Problem

__all__ = ["Backend", "Begun", "Call", "LostError", "pass_on"]

log = logging.getLogger("vip_llava.serving")

_TRIES = 4
_DEATHS = 2
"""Workers that one request may take with it: it may be what they die of."""
_ELSEWHERE = frozenset({429, 502, 503})
"""Another worker may answer what this one has no room for now."""
_ANSWER_BYTES = 256 * 2**20
_KEPT_FIELDS = ("content-type", "retry-after")
_RETRY_SECONDS = 2


class LostError(Exception):
    """A worker can't be reached or has died; `reached`: it may have begun with the request."""

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached


@dataclass(frozen=True, slots=True)
class Call:
    """A request to be passed on. `legacy`: it speaks the original's shapes."""

    path: str
    body: bytes
    fields: Mapping[str, str]
    legacy: bool = False


@dataclass(slots=True)
class Begun:
    """The head of a worker's answer; `pieces` raise LostError where it ends too early."""

    status: int
    fields: Mapping[str, str]
    pieces: AsyncIterator[bytes]
    close: Callable[[], Coroutine[Any, Any, None]]
    first: bytes | None = field(default=None)


class Backend(Protocol):
    """A worker, for one request."""

    async def send(self, call: Call) -> Begun:
        """The head of its answer; LostError if there is none."""

    def lost(self, error: LostError) -> None:
        """It was lost with this request; whoever chose it should know."""

    def done(self) -> None:
        """The request does not burden it any more."""


async def pass_on(call: Call, choose: Callable[[], Backend | None]) -> Response:
    """The answer of the first worker that gives one.

    choose: the next worker to be tried, one not tried before if there is such, else None.
    Raises Problem 503 where no worker is left; the last worker's own answer goes before that.
    """
    deaths = 0
    refusal: Response | None = None
    reason = ""
    for _ in range(_TRIES):
        backend = choose()
        if backend is None:
            break
        try:
            answer = await _answer(backend, call)
        except LostError as error:
            backend.lost(error)
            reason = str(error)
            log.warning("a worker was lost: %s", reason)
            deaths += error.reached
            if deaths >= _DEATHS:
                break
            continue
        if answer.status_code not in _ELSEWHERE:
            return answer
        refusal = answer
    if refusal is not None:
        return refusal
    raise Problem(
        503,
        "the worker that had the request was lost, and no other could answer it"
        if reason
        else "no worker for this model can be reached",
        code="worker_lost",
        retry_after=_RETRY_SECONDS,
    )


async def _answer(backend: Backend, call: Call) -> Response:
    """A worker's answer: whole, or, where it is a stream, with its first piece at hand."""
    begun: Begun | None = None
    handed_on = False
    try:
        begun = await backend.send(call)
        begun.first = await anext(begun.pieces, b"")
        kind = begun.fields.get("content-type", "")
        fields = {name: begun.fields[name] for name in _KEPT_FIELDS if name in begun.fields}
        if begun.status != 200 or not (call.legacy or kind.startswith("text/event-stream")):
            return Response(await _whole(begun), begun.status, headers=fields)
        await _hold(begun, call)
        handed_on = True
        return _Passed(backend, begun, call, fields)
    finally:
        if not handed_on:
            backend.done()
            if begun is not None:
                await begun.close()


class _Passed(StreamingResponse):
    """A stream whose worker is given back at its end, also where nobody has read any of it."""

    def __init__(
        self, backend: Backend, begun: Begun, call: Call, fields: Mapping[str, str]
    ) -> None:
        super().__init__(_stream(backend, begun, call), headers=fields)
        self._backend, self._begun = backend, begun

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._backend.done()
            await self._begun.close()


async def _hold(begun: Begun, call: Call) -> None:
    """Take in what a stream opens with, up to the first word: until then another worker will do."""
    while not call.legacy and begun.first and _only_opens(begun.first):
        more = await anext(begun.pieces, b"")
        begun.first += more
        if not more:
            return


def _only_opens(events: bytes) -> bool:
    """Whether server-sent events are nothing but the first, empty pieces of answers."""
    for event in filter(None, events.split(b"\n\n")):
        try:
            choices = json.loads(event.removeprefix(b"data: "))["choices"]
            empty = all(
                choice["delta"].get("content") == "" and not choice["finish_reason"]
                for choice in choices
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        if not empty or not choices:
            return False
    return True


async def _whole(begun: Begun) -> bytes:
    parts, size = [begun.first or b""], len(begun.first or b"")
    async for piece in begun.pieces:
        size += len(piece)
        if size > _ANSWER_BYTES:
            raise Problem(502, "a worker's answer is too large", code="worker_failed")
        parts.append(piece)
    return b"".join(parts)


async def _stream(backend: Backend, begun: Begun, call: Call) -> AsyncIterator[bytes]:
    try:
        yield begun.first or b""
        async for piece in begun.pieces:
            yield piece
    except LostError as error:
        backend.lost(error)
        log.warning("a worker was lost in the middle of an answer: %s", error)
        yield _farewell(call)


def _farewell(call: Call) -> bytes:
    """The end of a stream whose worker has died, in the form that its reader understands."""
    problem = Problem(503, "the worker was lost in the middle of its answer", code="worker_lost")
    if call.legacy:
        return line(f"{problem.message}; ask again", ERROR_CODE)
    return b"data: " + json.dumps(problem.to_json()).encode() + b"\n\n"
