"""`forward`: sends a request to a worker, and to another one if the first is lost.

A worker that can't be reached, or dies before the first byte of its answer, is replaced; a worker
sends that byte with the first token. Later the client gets an error in the format of its stream.
How a worker is reached is up to `WorkerConnection`: an HTTP address for a controller, a replica for
Ray.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response, StreamingResponse

from vip_llava.serving.cluster.legacy import ERROR_CODE, legacy_chunk
from vip_llava.serving.middleware.errors import ApiError

__all__ = ["ProxyRequest", "WorkerConnection", "WorkerLostError", "WorkerResponse", "forward"]

log = logging.getLogger("vip_llava.serving")

_MAX_ATTEMPTS = 4
_MAX_DEATHS = 2
"""Workers that may die with one request: the request may be what kills them."""
_RETRY_STATUSES = frozenset({429, 502, 503})
"""Another worker may have the capacity that this one lacks."""
_MAX_ANSWER_BYTES = 256 * 2**20
_FORWARDED_HEADERS = ("content-type", "retry-after")
_RETRY_SECONDS = 2


class WorkerLostError(Exception):
    """A worker can't be reached or died; `reached`: it may have started the request."""

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request to forward. `legacy`: in the original's format."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    legacy: bool = False


@dataclass(slots=True)
class WorkerResponse:
    """The head of a worker's response; `chunks` raises WorkerLostError if it ends early."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    close: Callable[[], Coroutine[Any, Any, None]]
    first: bytes = b""
    """What has been read of `chunks`."""


class WorkerConnection(Protocol):
    """One request to one worker."""

    async def send(self, request: ProxyRequest) -> WorkerResponse:
        """The head of the response; WorkerLostError if there is none."""

    def mark_lost(self, error: WorkerLostError) -> None:
        """Record that the worker was lost, so that it is not picked again at once."""

    def release(self) -> None:
        """Stop counting the request as load of the worker."""


async def forward(
    request: ProxyRequest, next_worker: Callable[[], WorkerConnection | None]
) -> Response:
    """The response of the first worker that gives one.

    Args:
        next_worker: the next worker to try, preferably an untried one, or None.

    Raises:
        ApiError: 503 if no worker is left; a worker's own refusal takes precedence.
    """
    deaths = 0
    refusal: Response | None = None
    lost = False
    for _ in range(_MAX_ATTEMPTS):
        worker = next_worker()
        if worker is None:
            break
        try:
            response = await _try_worker(worker, request)
        except WorkerLostError as error:
            worker.mark_lost(error)
            lost = True
            log.warning("worker lost: %s", error)
            deaths += error.reached
            if deaths >= _MAX_DEATHS:
                break
            continue
        if response.status_code not in _RETRY_STATUSES:
            return response
        refusal = response
    if refusal is not None:
        return refusal
    raise ApiError(
        503,
        "the worker was lost, and no other worker could answer"
        if lost
        else "no worker for this model can be reached",
        code="worker_lost",
        retry_after=_RETRY_SECONDS,
    )


async def _try_worker(worker: WorkerConnection, request: ProxyRequest) -> Response:
    """A worker's response: complete, or, for a stream, with its first chunk read."""
    response: WorkerResponse | None = None
    streaming = False
    try:
        response = await worker.send(request)
        response.first = await anext(response.chunks, b"")
        headers = {n: response.headers[n] for n in _FORWARDED_HEADERS if n in response.headers}
        sse = headers.get("content-type", "").startswith("text/event-stream")
        if response.status != 200 or not (request.legacy or sse):
            return Response(await _read_all(response), response.status, headers=headers)
        streaming = True
        return _ForwardedStream(worker, response, request, headers)
    finally:
        if not streaming:
            worker.release()
            if response is not None:
                await response.close()


class _ForwardedStream(StreamingResponse):
    """A stream that releases its worker at its end, even if it is never iterated."""

    def __init__(
        self,
        worker: WorkerConnection,
        response: WorkerResponse,
        request: ProxyRequest,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(_stream(worker, response, request), headers=headers)
        self._worker, self._response = worker, response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._worker.release()
            await self._response.close()


async def _read_all(response: WorkerResponse) -> bytes:
    content = bytearray(response.first)
    async for chunk in response.chunks:
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise ApiError(502, "the answer of the worker is too large", code="worker_failed")
    return bytes(content)


async def _stream(
    worker: WorkerConnection, response: WorkerResponse, request: ProxyRequest
) -> AsyncIterator[bytes]:
    try:
        yield response.first
        async for chunk in response.chunks:
            yield chunk
    except WorkerLostError as error:
        worker.mark_lost(error)
        log.warning("worker lost during an answer: %s", error)
        yield _final_error(request)


def _final_error(request: ProxyRequest) -> bytes:
    """The last event of a stream whose worker died."""
    error = ApiError(503, "the worker was lost during its answer", code="worker_lost")
    if request.legacy:
        return legacy_chunk(f"{error.message}; try again", ERROR_CODE)
    return b"data: " + error.body() + b"\n\n"
