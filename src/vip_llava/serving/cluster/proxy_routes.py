"""The routes of whatever stands in front of workers: what they answer, passed on.

Who answers is the caller's matter; what happens when one dies is `passing`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from starlette.responses import Response

from vip_llava.serving.cluster.legacy import NO_WORKER_CODE, line
from vip_llava.serving.cluster.model_routing import ANY_OBJECT, CHAT_ANSWER, LEGACY_ANSWER
from vip_llava.serving.middleware.errors import Problem

__all__ = ["add_passing_routes"]

Pass = Callable[[Request, bool], Awaitable[Response]]
"""Passes a request on; whether it is one of the original's."""


def add_passing_routes(app: FastAPI, passed: Pass) -> None:
    """Chat completions, and the original's stream, where even a failure is an object of it."""

    @app.post(
        "/v1/chat/completions",
        tags=["api"],
        openapi_extra=ANY_OBJECT,
        response_class=Response,
        responses=CHAT_ANSWER,
    )
    async def chat(request: Request) -> Response:
        """As the API's, answered by one of the workers that serve `model`."""
        return await passed(request, False)

    @app.post(
        "/worker_generate_stream",
        tags=["original"],
        openapi_extra=ANY_OBJECT,
        response_class=Response,
        responses=LEGACY_ANSWER,
    )
    async def worker_generate_stream(request: Request) -> Response:
        """As a worker's. What goes wrong comes as the last object of the stream."""
        try:
            return await passed(request, True)
        except Problem as problem:
            if problem.code == "client_gone" or problem.status == 400:
                raise
            said = line(problem.message, NO_WORKER_CODE)
            return Response(said, media_type="application/octet-stream")
