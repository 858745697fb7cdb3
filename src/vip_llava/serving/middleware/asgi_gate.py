"""What every request passes before any of it is parsed: identity, limits, and one record of it.

A plain ASGI layer around the application. It gives the request an id, checks host, page, key and
rate, takes in the whole body within its limits, and turns whatever goes wrong behind it into an
answer of the standard shape. It never looks into a body, and logs neither content nor addresses.
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
from vip_llava.serving.middleware.access import Access
from vip_llava.serving.middleware.errors import Problem, as_problem, internal
from vip_llava.serving.middleware.rates import ByteBudget, Rates

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vip_llava.serving.middleware.metrics import Metrics
    from vip_llava.serving.settings import ServerSettings

__all__ = ["OPEN_PATHS", "Gate"]

#: Asked by whoever watches over the process: no key, no rate, no Host check.
OPEN_PATHS = frozenset({"/health"})
#: Others are told as "other" in counts and in the log, which hold nothing that a client made up.
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
#: Neither counted for a client's rate nor refused while the server stops.
WATCH_PATHS = OPEN_PATHS | {"/ready", "/metrics"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DRAIN_RETRY_SECONDS = 5
_BUSY_RETRY_SECONDS = 1

log = logging.getLogger("vip_llava.serving")


class Gate:
    """The layer around one application. `draining()` tells whether the server is being stopped."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        metrics: Metrics,
        draining: Callable[[], bool],
        own_rates: Collection[str] = (),
    ) -> None:
        """own_rates: paths whose requests are counted apart from the client's others."""
        self._app = app
        self._own_rates = frozenset(own_rates)
        self._limits = settings.limits
        self._metrics = metrics
        self._draining = draining
        self._access = Access(settings)
        self._rates = Rates(settings.limits.rate, settings.limits.burst)
        self._bodies = ByteBudget(settings.limits.bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other kinds of traffic than HTTP are closed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        passage = _Passage(scope, send)
        self._metrics.open_requests.inc()
        body = _Body(self._bodies, self._limits)
        try:
            self._check(passage)
            await self._app(scope, await body.taken_in(passage, receive), passage.send)
        except VipLlavaError as error:
            await passage.refuse(as_problem(error))
        except Exception as error:
            # Only where it happened: the text of an error may quote a question or an image's name.
            log.error("id=%s failed: %s", passage.id, _place(error))
            await passage.refuse(internal(passage.id))
        finally:
            await passage.ends.aclose()
            body.give_back()
            self._metrics.open_requests.dec()
            self._record(passage)

    def _check(self, passage: _Passage) -> None:
        """Raises the Problem of a request that may not go on."""
        if passage.path in OPEN_PATHS:
            return
        self._access.check_host(passage.fields)
        self._access.check_origin(passage.fields)
        try:
            client = self._access.check_key(passage.fields)
        except Problem:
            self._count(passage.address)  # so that keys can't be tried out quickly
            raise
        if passage.path in WATCH_PATHS:
            return
        passage.client = client or passage.client
        client = client or passage.address
        self._count(f"{passage.path} {client}" if passage.path in self._own_rates else client)
        if self._draining():
            raise Problem(
                503, "the server is stopping", code="stopping", retry_after=_DRAIN_RETRY_SECONDS
            )

    def _count(self, client: str) -> None:
        wait = self._rates.take(client)
        if wait:
            raise Problem(
                429,
                f"too many requests: at most {self._limits.rate:g} a minute and "
                f"{self._limits.burst} at once (rate, burst)",
                code="rate_limited",
                retry_after=wait,
            )

    def _record(self, passage: _Passage) -> None:
        seconds = time.perf_counter() - passage.began
        method = passage.method if passage.method in METHODS else "other"
        self._metrics.answered(passage.route, method, passage.status, seconds)
        if passage.code is not None:
            self._metrics.refused(passage.code)
        level = logging.DEBUG if passage.path in WATCH_PATHS else logging.INFO
        log.log(
            level,
            "id=%s %s %s %d %.0f ms%s",
            passage.id,
            method,
            passage.route,
            passage.status,
            1000 * seconds,
            f" {passage.code}" if passage.code else "",
        )


class _Passage:
    """One request on its way through the gate."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.began = time.perf_counter()
        self._scope = scope
        self._send = send
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        # Of a field that is there twice the first counts, and what is no ASCII is none of ours.
        self.fields: dict[str, str] = {}
        for name, value in scope["headers"]:
            self.fields.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        given = self.fields.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        client = scope.get("client")
        self.address = f"address:{client[0]}" if client else "address:unknown"
        self.client = "everyone"
        """Who owns what is uploaded: a key, or everyone where there are none."""
        self.ends = AsyncExitStack()
        """What has to end with this request, however it ends: answered, refused, cut off."""
        self.status = 0
        self.code: str | None = None
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = self.id
        state["passage"] = self

    @property
    def route(self) -> str:
        """The path of the route that answered; what no route knows is "other"."""
        return getattr(self._scope.get("route"), "path", "other")

    async def send(self, message: Message) -> None:
        """As the server's, with the header fields that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            fields = list(message.get("headers", []))
            known = {name.lower() for name, _ in fields}
            for name, value in (
                (b"x-request-id", self.id.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ):
                if name not in known:
                    fields.append((name, value))
            message = {**message, "headers": fields}
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, unless an answer has begun; then the connection has to end."""
        self.code = problem.code
        if self.status:
            raise ConnectionAbortedError("an answer failed after its beginning")
        body = problem.body()
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        # Of a body that was not taken in the rest may still be coming.
        fields |= problem.headers | ({"connection": "close"} if problem.status == 413 else {})
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        start = {"type": "http.response.start", "status": problem.status, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


class _Body:
    """A request's body, taken in as a whole within the limits before anything parses it."""

    def __init__(self, budget: ByteBudget, limits: Any) -> None:
        self._budget = budget
        self._limits = limits
        self._taken = 0

    async def taken_in(self, passage: _Passage, receive: Receive) -> Receive:
        """A `receive` that gives the body at once, and then what else comes.

        Raises the Problem of a body that is too large (declared or not), too slow, or one too many.
        """
        fields = passage.fields
        if "content-length" not in fields and "transfer-encoding" not in fields:
            return receive
        declared = fields.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._read(receive)
        except TimeoutError:
            raise Problem(
                408,
                f"the body did not arrive within {self._limits.body_seconds:g} seconds",
                code="body_too_slow",
            ) from None
        first: Message = {"type": "http.request", "body": body, "more_body": False}
        pending = [{"type": "http.disconnect"} if body is None else first]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client went away."""
        parts = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            if not self._budget.take(len(part)):
                raise Problem(
                    503,
                    "the server holds as many bodies of requests as it can",
                    code="bodies_full",
                    retry_after=_BUSY_RETRY_SECONDS,
                )
            self._taken += len(part)
            if self._taken > self._limits.body_bytes:
                raise self._too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"the body has more than {self._limits.body_bytes:,} bytes (body_bytes)",
            code="body_too_large",
        )

    def give_back(self) -> None:
        """The body is not needed any more."""
        self._budget.give_back(self._taken)
        self._taken = 0


def _place(error: BaseException) -> str:
    """Kind of an error and where it was raised, without its text."""
    trace = error.__traceback__
    steps = []
    while trace is not None:
        code = trace.tb_frame.f_code
        steps.append(f"{code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(steps[-6:])}"
