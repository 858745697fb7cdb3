"""`add_proxy_routes`: the routes of a controller or Ray ingress that workers answer.

It does not know how a request reaches a worker; the caller's function does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from starlette.responses import Response

from vip_llava.serving.cluster.legacy import NO_WORKER_CODE, legacy_chunk
from vip_llava.serving.cluster.model_routing import (
    CHAT_RESPONSES,
    JSON_OBJECT_BODY,
    LEGACY_RESPONSES,
)
from vip_llava.serving.middleware.errors import ApiError

__all__ = ["add_proxy_routes"]

Proxy = Callable[[Request, bool], Awaitable[Response]]
"""Forwards a request; the flag tells whether it is one of the original's."""


def add_proxy_routes(app: FastAPI, proxy: Proxy) -> None:
    """Add chat completions and the original's stream, which reports errors as objects in it."""

    @app.post(
        "/v1/chat/completions",
        tags=["api"],
        openapi_extra=JSON_OBJECT_BODY,
        response_class=Response,
        responses=CHAT_RESPONSES,
    )
    async def chat(request: Request) -> Response:
        """As the API's, answered by a worker that serves `model`."""
        return await proxy(request, False)

    @app.post(
        "/worker_generate_stream",
        tags=["original"],
        openapi_extra=JSON_OBJECT_BODY,
        response_class=Response,
        responses=LEGACY_RESPONSES,
    )
    async def worker_generate_stream(request: Request) -> Response:
        """As a worker's; an error is the last object of the stream."""
        try:
            return await proxy(request, True)
        except ApiError as error:
            if error.code == "client_gone" or error.status == 400:
                raise
            content = legacy_chunk(error.message, NO_WORKER_CODE)
            return Response(content, media_type="application/octet-stream")
