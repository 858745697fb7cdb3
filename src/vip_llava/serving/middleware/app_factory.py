"""The shell of every server of this project: an application with all the checks and none of the work.

API, worker and controller are made by adding routes to it. It brings request ids, limits, API
keys, the standard shape of errors, liveness, readiness and metrics. It knows no model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from vip_llava.errors import MissingExtraError, VipLlavaError
from vip_llava.serving.settings import ServerSettings

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware

    from vip_llava.serving.middleware.metrics import Metrics
except ImportError as error:
    raise MissingExtraError(
        f"serving needs the library {error.name}: pip install 'vip-llava[serve]'"
    ) from error

from vip_llava import __version__
from vip_llava.serving.middleware.asgi_gate import Gate
from vip_llava.serving.middleware.errors import (
    Problem,
    as_problem,
    broken_rules,
    error_schema,
    internal,
)

__all__ = ["Shell", "shell", "shell_of"]

_NOT_READY_SECONDS = 2
log = logging.getLogger("vip_llava.serving")
_HTTP_PROBLEMS = {
    404: ("there is nothing at this path", "not_found"),
    405: ("the path is there, but not with this method", "method_not_allowed"),
}


class Shell:
    """What the parts of one server share: `shell_of(app)`."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.draining = False
        """Set when the server is being stopped: no new requests, running ones end."""
        self._checks: list[Callable[[], str | None]] = []

    def ready_when(self, check: Callable[[], str | None]) -> None:
        """Add a condition of readiness: a function that gives a reason against it, or None."""
        self._checks.append(check)

    def not_ready(self) -> str | None:
        """The first reason why new requests should go elsewhere, or None."""
        if self.draining:
            return "the server is stopping"
        return next((reason for check in self._checks if (reason := check())), None)


def shell(
    settings: ServerSettings, *, title: str, lifespan: Any = None, own_rates: Collection[str] = ()
) -> FastAPI:
    """An application without routes but /health, /ready, /metrics and /openapi.json.

    Pages of FastAPI that load scripts from elsewhere are left out. `lifespan` as FastAPI's.
    own_rates: paths whose requests are counted apart from the client's others.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=error_schema(401, 403, 413, 415, 422, 429, 500, 503),
    )
    parts = Shell(settings)
    app.state.shell = parts
    app.add_middleware(
        Gate,
        settings=settings,
        metrics=parts.metrics,
        draining=lambda: parts.draining,
        own_rates=own_rates,
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
        )
    _add_error_handlers(app)
    _add_watch_routes(app, parts)
    return app


def shell_of(app: FastAPI) -> Shell:
    """The shared parts of an application made by `shell`."""
    parts = app.state.shell
    assert isinstance(parts, Shell)
    return parts


def _add_watch_routes(app: FastAPI, parts: Shell) -> None:
    @app.get("/health", tags=["watch"])
    async def health() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "ok"}

    @app.get("/ready", tags=["watch"])
    async def ready() -> dict[str, str]:
        """Whether requests can be answered now; 503 with a reason where not."""
        reason = parts.not_ready()
        if reason is not None:
            raise Problem(503, reason, code="not_ready", retry_after=_NOT_READY_SECONDS)
        return {"status": "ready"}

    @app.get("/metrics", tags=["watch"], response_class=Response)
    def metrics() -> Response:
        """Counts for Prometheus."""
        # In a thread of its own: an engine tells its counts between two steps.
        return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, problem: Problem) -> Response:
        request.state.passage.code = problem.code
        return Response(
            problem.body(), problem.status, problem.headers, media_type="application/json"
        )

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, VipLlavaError)
        problem = as_problem(error)
        if problem.status == 500:  # about the server and not the request: told to the operator
            log.error("id=%s failed: %s: %s", request.state.request_id, type(error).__name__, error)
            problem = internal(request.state.request_id)
        return answer(request, problem)

    async def rules(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if isinstance(error.body, bytes) and not kind.endswith(("/json", "+json")):
            text = "the body has to be JSON, with the header content-type: application/json"
            return answer(request, Problem(415, text, code="wrong_content_type"))
        return answer(request, broken_rules(error.errors()))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text, code = _HTTP_PROBLEMS.get(error.status_code, (str(error.detail), "invalid_request"))
        answered = answer(request, Problem(error.status_code, text, code=code))
        answered.headers.update(error.headers or {})
        return answered

    app.add_exception_handler(VipLlavaError, ours)
    app.add_exception_handler(RequestValidationError, rules)
    app.add_exception_handler(HTTPException, plain)
