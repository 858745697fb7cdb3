"""`RouteAllowList`: the ASGI layer that exposes only the Gradio routes that the page needs.

Gradio has routes for files, uploads, proxies and more, which this layer hides. It also sets the
security headers of every response.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from vip_llava.serving.middleware.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RouteAllowList"]

#: The paths that the page's scripts request; every other path gets 404.
_ALLOWED = re.compile(
    r"/(?:$|config$|theme\.css$|favicon\.ico$|manifest\.json$|health$|ready$|metrics$"
    r"|page/|assets/|static/|svelte/"
    r"|gradio_api/(?:info|app_id|startup-events|queue/(?:join|data)|run/predict|heartbeat/[\w-]+|cancel|reset)$)"
)
# Gradio compiles templates to functions, hence 'unsafe-eval'; all content comes from this server.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_HEARTBEAT = "/gradio_api/heartbeat/"
_POLL_SECONDS = 0.2


class RouteAllowList:
    """The layer around one application. `stopping()` tells whether the server is stopping."""

    def __init__(self, app: ASGIApp, *, stopping: Callable[[], bool]) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in _HEADERS}
                kept = [each for each in message.get("headers", []) if each[0].lower() not in known]
                message = {**message, "headers": [*kept, *_HEADERS]}
            await send(message)

        if not _ALLOWED.match(scope["path"]):
            headers = [(b"content-type", b"application/json")]
            start: Message = {"type": "http.response.start", "status": 404, "headers": headers}
            await send_secured(start)
            body = ApiError(404, "no such path", code="not_found").body()
            await send_secured({"type": "http.response.body", "body": body})
        elif scope["path"].startswith(_HEARTBEAT):
            await self._heartbeat(scope, receive, send_secured)
        else:
            await self._app(_as_same_site(scope), receive, send_secured)

    async def _heartbeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's heartbeat stream never ends by itself; end it when the server stops."""
        open_response = False

        async def tracked_send(message: Message) -> None:
            nonlocal open_response
            started = message["type"] == "http.response.start"
            open_response = started or bool(message.get("more_body"))
            await send(message)

        async def receive_until_stop() -> Message:
            pending = asyncio.ensure_future(receive())
            try:
                while not pending.done() and not self._stopping():
                    await asyncio.wait({pending}, timeout=_POLL_SECONDS)
                return pending.result() if pending.done() else {"type": "http.disconnect"}
            finally:
                pending.cancel()

        await self._app(scope, receive_until_stop, tracked_send)
        if open_response and self._stopping():
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _as_same_site(scope: Scope) -> Scope:
    """Let a visitor follow a link from another site to the page; its scripts remain refused."""
    headers = dict(scope["headers"])
    if (
        scope["method"] == "GET"
        and scope["path"] == "/"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    ):
        kept = [each for each in scope["headers"] if each[0] != b"sec-fetch-site"]
        return {**scope, "headers": kept}
    return scope
