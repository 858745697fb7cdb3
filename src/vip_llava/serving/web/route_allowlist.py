"""Which of Gradio's many routes are open, and what browsers are told about every answer.

Gradio serves files, uploads, proxies and more; the page needs none of them, so they are not there.
A plain ASGI layer around the whole application.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Doors"]

#: What the page's scripts ask for; everything else of Gradio answers 404.
_OPEN = re.compile(
    r"/(?:$|config$|theme\.css$|favicon\.ico$|manifest\.json$|health$|ready$|metrics$"
    r"|page/|assets/|static/|svelte/"
    r"|gradio_api/(?:info|app_id|startup-events|queue/(?:join|data)|run/predict|heartbeat/[\w-]+|cancel|reset)$)"
)
# Gradio's templates are functions made of text, so scripts may be made of text; but all of them,
# and everything else, come from here.
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
_LOOK_SECONDS = 0.2


class Doors:
    """The layer around one application. `stopping()` tells whether the server is being stopped."""

    def __init__(self, app: ASGIApp, *, stopping: Callable[[], bool]) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in _HEADERS}
                kept = [each for each in message.get("headers", []) if each[0].lower() not in known]
                message = {**message, "headers": [*kept, *_HEADERS]}
            await send(message)

        if not _OPEN.match(scope["path"]):
            body = b'{"error": {"message": "there is nothing at this path", "type": "not_found_error", '
            body += b'"param": null, "code": "not_found"}}'
            headers = [(b"content-type", b"application/json")]
            start: Message = {"type": "http.response.start", "status": 404, "headers": headers}
            await guarded(start)
            await guarded({"type": "http.response.body", "body": body})
            return
        if scope["path"].startswith(_HEARTBEAT):
            await self._beat(scope, receive, guarded)
        else:
            await self._app(_linked(scope), receive, guarded)

    async def _beat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's sign of life to a visitor never ends; here it ends when the server is stopped."""
        open_answer = False

        async def watched(message: Message) -> None:
            nonlocal open_answer
            open_answer = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        async def until_stopped() -> Message:
            coming = asyncio.ensure_future(receive())
            try:
                while not coming.done() and not self._stopping():
                    await asyncio.wait({coming}, timeout=_LOOK_SECONDS)
                return coming.result() if coming.done() else {"type": "http.disconnect"}
            finally:
                coming.cancel()

        await self._app(scope, until_stopped, watched)
        if open_answer and self._stopping():
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _linked(scope: Scope) -> Scope:
    """Following a link to the page is no request of the other site's scripts."""
    fields = dict(scope["headers"])
    if (
        scope["method"] == "GET"
        and scope["path"] == "/"
        and fields.get(b"sec-fetch-mode") == b"navigate"
        and fields.get(b"sec-fetch-dest") == b"document"
    ):
        kept = [each for each in scope["headers"] if each[0] != b"sec-fetch-site"]
        return {**scope, "headers": kept}
    return scope
