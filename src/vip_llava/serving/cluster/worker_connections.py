"""Workers as addresses: one connection pool over which requests are passed on and answers come back.

Only addresses that the controller has admitted are dialled, without proxies and without following
redirects. A worker that the registry drops is not waited for any longer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import httpx

from vip_llava.serving.cluster.failover import Begun, Call, LostError
from vip_llava.serving.cluster.registry import Member, Registry

__all__ = ["MemberBackend", "chooser", "new_client"]

Result = TypeVar("Result")
_CONNECT_SECONDS = 5.0
_MARGIN_SECONDS = 15.0


def new_client(answer_seconds: float) -> httpx.AsyncClient:
    """The pool of one controller. answer_seconds: what workers may take for a whole answer."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(
            _CONNECT_SECONDS, read=answer_seconds + _MARGIN_SECONDS, pool=_CONNECT_SECONDS
        ),
        # Shorter than workers keep silent connections, so that none is used as it is being closed.
        limits=httpx.Limits(
            max_connections=2000, max_keepalive_connections=128, keepalive_expiry=5
        ),
        follow_redirects=False,
        trust_env=False,
    )


class MemberBackend:
    """One request to one member of the registry."""

    def __init__(
        self,
        member: Member,
        registry: Registry,
        client: httpx.AsyncClient,
        fields: Mapping[str, str],
    ) -> None:
        """fields: what the controller adds, its key for workers among it."""
        self._member, self._registry, self._client, self._fields = member, registry, client, fields
        self._counted = True
        member.passing += 1

    async def send(self, call: Call) -> Begun:
        """The head of the answer."""
        request = self._client.build_request(
            "POST",
            self._member.address + call.path,
            content=call.body,
            # Answers pass through as they are, so they must not be compressed on the way.
            headers={**call.fields, **self._fields, "accept-encoding": "identity"},
        )
        response = await self._unless_gone(lambda: self._client.send(request, stream=True))
        return Begun(
            response.status_code, response.headers, self._pieces(response), response.aclose
        )

    def lost(self, error: LostError) -> None:
        """Nothing new for it until its next sign of life."""
        self._registry.suspect(self._member.address)

    def done(self) -> None:
        """Not counted any more."""
        self._member.passing -= self._counted
        self._counted = False

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        raw = response.aiter_raw()
        while piece := await self._unless_gone(lambda: anext(raw, b"")):
            yield piece

    async def _unless_gone(self, make: Callable[[], Awaitable[Result]]) -> Result:
        """What comes of it; LostError if the connection fails or the registry drops the worker."""
        limit = asyncio.timeout(None)
        take_back: Callable[[], None] | None = None
        try:
            async with limit:
                now = asyncio.get_running_loop().time
                take_back = self._member.when_gone(lambda: limit.reschedule(now()))
                return await make()
        except httpx.ConnectError as error:
            raise LostError("it does not take connections", reached=False) from error
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise LostError("it does not answer", reached=False) from error
        except (httpx.HTTPError, httpx.StreamError, AttributeError) as error:
            # The last one: httpcore asks a connection that was closed just now for its socket.
            raise LostError(
                f"its connection broke ({type(error).__name__})", reached=True
            ) from error
        except TimeoutError as error:
            raise LostError(self._member.gone or "it is gone", reached=True) from error
        finally:
            if take_back is not None:
                take_back()


def chooser(
    model: str, registry: Registry, client: httpx.AsyncClient, fields: Mapping[str, str]
) -> Callable[[], MemberBackend | None]:
    """Gives one worker after the other for a model, as `pass_on` wants it."""
    tried: set[Member] = set()

    def choose() -> MemberBackend | None:
        member = registry.pick(model, tried)
        if member is None:
            return None
        tried.add(member)
        return MemberBackend(member, registry, client, fields)

    return choose


async def closed(client: httpx.AsyncClient) -> None:
    """End the pool, whatever its connections do."""
    with contextlib.suppress(httpx.HTTPError, OSError):
        await client.aclose()
