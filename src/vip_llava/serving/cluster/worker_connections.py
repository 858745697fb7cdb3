"""Requests from a controller to its workers over one HTTP connection pool.

Only admitted addresses are contacted, without proxies and redirects. A request is given up when
the registry drops its worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import httpx

from vip_llava.serving.cluster.failover import ProxyRequest, WorkerLostError, WorkerResponse
from vip_llava.serving.cluster.registry import RegisteredWorker, WorkerRegistry

__all__ = ["HttpWorkerConnection", "make_client", "worker_picker"]

T = TypeVar("T")
_CONNECT_SECONDS = 5.0
_MARGIN_SECONDS = 15.0


def make_client(answer_seconds: float) -> httpx.AsyncClient:
    """The connection pool of a controller. answer_seconds: the workers' limit for an answer."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(
            _CONNECT_SECONDS, read=answer_seconds + _MARGIN_SECONDS, pool=_CONNECT_SECONDS
        ),
        # Shorter than the workers' keep-alive, so that no connection is reused while it closes.
        limits=httpx.Limits(
            max_connections=2000, max_keepalive_connections=128, keepalive_expiry=5
        ),
        follow_redirects=False,
        trust_env=False,
    )


class HttpWorkerConnection:
    """One request to one registered worker."""

    def __init__(
        self,
        worker: RegisteredWorker,
        registry: WorkerRegistry,
        client: httpx.AsyncClient,
        headers: Mapping[str, str],
    ) -> None:
        """headers: added to the request, the service key among them."""
        self._worker, self._registry = worker, registry
        self._client, self._headers = client, headers
        self._counted = True
        worker.in_flight += 1

    async def send(self, request: ProxyRequest) -> WorkerResponse:
        """See `WorkerConnection.send`."""
        sent = self._client.build_request(
            "POST",
            self._worker.address + request.path,
            content=request.body,
            # Responses are forwarded byte by byte, so they must not be compressed.
            headers={**request.headers, **self._headers, "accept-encoding": "identity"},
        )
        response = await self._until_dropped(lambda: self._client.send(sent, stream=True))
        return WorkerResponse(
            response.status_code, response.headers, self._chunks(response), response.aclose
        )

    def mark_lost(self, error: WorkerLostError) -> None:
        """Send the worker no new requests until its next heartbeat."""
        self._registry.suspect(self._worker.address)

    def release(self) -> None:
        """See `WorkerConnection.release`; repeated calls have no effect."""
        self._worker.in_flight -= self._counted
        self._counted = False

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        raw = response.aiter_raw()
        while chunk := await self._until_dropped(lambda: anext(raw, b"")):
            yield chunk

    async def _until_dropped(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await it; WorkerLostError if the connection fails or the registry drops the worker."""
        timeout = asyncio.timeout(None)
        cancel_callback: Callable[[], None] | None = None
        try:
            async with timeout:
                now = asyncio.get_running_loop().time
                cancel_callback = self._worker.on_drop(lambda: timeout.reschedule(now()))
                return await make()
        except httpx.ConnectError as error:
            raise WorkerLostError("it refuses connections", reached=False) from error
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise WorkerLostError("connecting timed out", reached=False) from error
        except (httpx.HTTPError, httpx.StreamError, AttributeError) as error:
            # AttributeError: httpcore reads the socket of a connection that was just closed.
            raise WorkerLostError(
                f"its connection broke ({type(error).__name__})", reached=True
            ) from error
        except TimeoutError as error:
            reason = self._worker.drop_reason or "it was dropped"
            raise WorkerLostError(reason, reached=True) from error
        finally:
            if cancel_callback is not None:
                cancel_callback()


def worker_picker(
    model: str, registry: WorkerRegistry, client: httpx.AsyncClient, headers: Mapping[str, str]
) -> Callable[[], HttpWorkerConnection | None]:
    """A function that picks untried workers of a model, one by one, for `forward`."""
    tried: set[RegisteredWorker] = set()

    def next_worker() -> HttpWorkerConnection | None:
        worker = registry.pick(model, tried)
        if worker is None:
            return None
        tried.add(worker)
        return HttpWorkerConnection(worker, registry, client, headers)

    return next_worker
