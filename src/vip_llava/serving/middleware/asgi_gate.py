"""`RequestGate`: the ASGI layer that every request passes before anything is parsed.

It assigns a request id, checks host, origin, key and rate, reads the whole body within its limits,
turns every error behind it into a standard response, and writes one log line. It never looks into
a body, and logs neither content nor addresses.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, MutableMapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from vip_llava.errors import VipLlavaError
from vip_llava.serving.middleware.access import AccessPolicy
from vip_llava.serving.middleware.errors import ApiError, as_api_error, internal_error
from vip_llava.serving.middleware.rate_limit import ByteBudget, RateLimiter

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vip_llava.serving.middleware.metrics import Metrics
    from vip_llava.serving.settings import Limits, ServerSettings

__all__ = ["OPEN_PATHS", "RequestGate", "RequestInfo"]

#: Paths without host, key and rate checks, for liveness probes.
OPEN_PATHS = frozenset({"/health"})
#: Paths that are neither rate-limited nor refused while the server drains.
MONITORING_PATHS = OPEN_PATHS | {"/ready", "/metrics"}
#: Other methods are counted and logged as "other", so that clients can't create metric series.
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DRAIN_RETRY_SECONDS = 5
_BUSY_RETRY_SECONDS = 1

log = logging.getLogger("vip_llava.serving")


class RequestGate:
    """The layer around one application. `draining()` tells whether the server is stopping."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        metrics: Metrics,
        draining: Callable[[], bool],
        separate_rate_paths: Collection[str] = (),
    ) -> None:
        """separate_rate_paths: paths whose requests are rate-limited apart from the others."""
        self._app = app
        self._separate_rate_paths = frozenset(separate_rate_paths)
        self._limits = settings.limits
        self._metrics = metrics
        self._draining = draining
        self._access = AccessPolicy(settings)
        self._rates = RateLimiter(settings.limits.rate, settings.limits.burst)
        self._bodies = ByteBudget(settings.limits.bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; a connection that is not HTTP is closed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        info = RequestInfo(scope, send)
        self._metrics.open_requests.inc()
        body = _BodyReader(self._bodies, self._limits)
        try:
            self._check(info)
            await self._app(scope, await body.read(info, receive), info.send)
        except VipLlavaError as error:
            await info.send_error(as_api_error(error))
        except Exception as error:
            # The location only: the text of an error may quote a question or a file name.
            log.error("id=%s failed: %s", info.id, _location(error))
            await info.send_error(internal_error(info.id))
        finally:
            await info.exit_stack.aclose()
            body.release()
            self._metrics.open_requests.dec()
            self._record(info)

    def _check(self, info: RequestInfo) -> None:
        """Raise the ApiError of a request that is refused."""
        if info.path in OPEN_PATHS:
            return
        self._access.check_host(info.headers)
        self._access.check_origin(info.headers)
        try:
            client = self._access.check_key(info.headers)
        except ApiError:
            self._count(info.address)  # slows down guessing of keys
            raise
        if info.path in MONITORING_PATHS:
            return
        info.client = client or info.client
        client = client or info.address
        separate = info.path in self._separate_rate_paths
        self._count(f"{info.path} {client}" if separate else client)
        if self._draining():
            raise ApiError(
                503, "the server is stopping", code="stopping", retry_after=_DRAIN_RETRY_SECONDS
            )

    def _count(self, client: str) -> None:
        wait = self._rates.take(client)
        if wait:
            raise ApiError(
                429,
                f"too many requests: the limits are {self._limits.rate:g} a minute and "
                f"{self._limits.burst} at once (rate, burst)",
                code="rate_limited",
                retry_after=wait,
            )

    def _record(self, info: RequestInfo) -> None:
        seconds = time.perf_counter() - info.started
        method = info.method if info.method in METHODS else "other"
        self._metrics.count_response(info.route, method, info.status, seconds)
        if info.error_code is not None:
            self._metrics.count_error(info.error_code)
        level = logging.DEBUG if info.path in MONITORING_PATHS else logging.INFO
        code = f" {info.error_code}" if info.error_code else ""
        log.log(
            level,
            "id=%s %s %s %d %.0f ms%s",
            info.id,
            method,
            info.route,
            info.status,
            1000 * seconds,
            code,
        )


class RequestInfo:
    """One request in progress; routes find it as `request.state.info`."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.started = time.perf_counter()
        self._scope = scope
        self._send = send
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers: dict[str, str] = {}
        """Request headers by lower-case name; of a repeated header the first counts."""
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        client = scope.get("client")
        self.address = f"address:{client[0]}" if client else "address:unknown"
        self.client = "everyone"
        """The owner of uploads: an API key's id, or "everyone" if no keys are configured."""
        self.exit_stack = AsyncExitStack()
        """Closed at the end of the request, however it ends."""
        self.status = 0
        self.error_code: str | None = None
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["info"] = self

    @property
    def route(self) -> str:
        """The path of the matching route; "other" if no route matches."""
        return getattr(self._scope.get("route"), "path", "other")

    async def send(self, message: Message) -> None:
        """Forward an ASGI message; a response start gets the headers that all responses have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            known = {name.lower() for name, _ in headers}
            for name, value in (
                (b"x-request-id", self.id.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ):
                if name not in known:
                    headers.append((name, value))
            message = {**message, "headers": headers}
        await self._send(message)

    async def send_error(self, error: ApiError) -> None:
        """Send an error response; abort the connection if a response has already started."""
        self.error_code = error.code
        if self.status:
            raise ConnectionAbortedError("the response failed after its start")
        body = error.body()
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        # The rest of an oversized body may still be arriving.
        fields |= error.headers | ({"connection": "close"} if error.status == 413 else {})
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        start = {"type": "http.response.start", "status": error.status, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


class _BodyReader:
    """Reads a request's whole body within the limits before anything parses it."""

    def __init__(self, budget: ByteBudget, limits: Limits) -> None:
        self._budget = budget
        self._limits = limits
        self._taken = 0

    async def read(self, info: RequestInfo, receive: Receive) -> Receive:
        """A `receive` that returns the whole body first and then what else arrives.

        Raises:
            ApiError: the body is too large (declared or not), too slow, or exceeds the budget.
        """
        headers = info.headers
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return receive
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._collect(receive)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self._limits.body_seconds:g} seconds "
                "(body_seconds)",
                code="body_too_slow",
            ) from None
        first: Message = {"type": "http.request", "body": body, "more_body": False}
        pending = [{"type": "http.disconnect"} if body is None else first]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay

    async def _collect(self, receive: Receive) -> bytes | None:
        """The body; None if the client disconnects."""
        parts = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            if not self._budget.take(len(part)):
                raise ApiError(
                    503,
                    "the bodies of other requests fill the memory for them (bodies_bytes)",
                    code="bodies_full",
                    retry_after=_BUSY_RETRY_SECONDS,
                )
            self._taken += len(part)
            if self._taken > self._limits.body_bytes:
                raise self._too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body has more than {self._limits.body_bytes:,} bytes (body_bytes)",
            code="body_too_large",
        )

    def release(self) -> None:
        """Return the body's bytes to the budget."""
        self._budget.give_back(self._taken)
        self._taken = 0


def _location(error: BaseException) -> str:
    """The type of an error and where it was raised, without its message."""
    trace = error.__traceback__
    steps = []
    while trace is not None:
        code = trace.tb_frame.f_code
        steps.append(f"{code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(steps[-6:])}"
