"""`create_base_app`: an application with every check and no routes of its own.

API, worker, controller and page add their routes to it. It brings request ids, limits, API keys,
the error format, liveness, readiness and metrics. It does not know models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from vip_llava.errors import MissingExtraError, VipLlavaError
from vip_llava.serving.settings import ServerSettings

try:
    import sse_starlette  # noqa: F401 - only to report a missing extra in one place
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
from vip_llava.serving.middleware.asgi_gate import RequestGate
from vip_llava.serving.middleware.errors import (
    ApiError,
    as_api_error,
    error_responses,
    internal_error,
    validation_error,
)

__all__ = ["AppContext", "context_of", "create_base_app"]

_NOT_READY_RETRY_SECONDS = 2
log = logging.getLogger("vip_llava.serving")
_HTTP_ERRORS = {
    404: ("no such path", "not_found"),
    405: ("this path does not allow the method", "method_not_allowed"),
}


class AppContext:
    """State shared by the components of one application: `context_of(app)`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.draining = False
        """True once the server stops: new requests are refused, running ones finish."""
        self._readiness_checks: list[Callable[[], str | None]] = []

    def add_readiness_check(self, check: Callable[[], str | None]) -> None:
        """Add a function that returns why the server is not ready, or None."""
        self._readiness_checks.append(check)

    def not_ready(self) -> str | None:
        """The first reason why new requests should go elsewhere, or None."""
        if self.draining:
            return "the server is stopping"
        return next((reason for check in self._readiness_checks if (reason := check())), None)


def create_base_app(
    settings: ServerSettings,
    *,
    title: str,
    lifespan: Any = None,
    separate_rate_paths: Collection[str] = (),
) -> FastAPI:
    """An application whose only routes are /health, /ready, /metrics and /openapi.json.

    FastAPI's documentation pages are left out: they load scripts from other servers.

    Args:
        lifespan: as FastAPI's.
        separate_rate_paths: paths whose requests are rate-limited apart from a client's others.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=error_responses(401, 403, 413, 415, 422, 429, 500, 503),
    )
    context = AppContext()
    app.state.context = context
    app.add_middleware(
        RequestGate,
        settings=settings,
        metrics=context.metrics,
        draining=lambda: context.draining,
        separate_rate_paths=separate_rate_paths,
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
        )
    _add_error_handlers(app)
    _add_monitoring_routes(app, context)
    return app


def context_of(app: FastAPI) -> AppContext:
    """The context of an application made by `create_base_app`."""
    context = app.state.context
    assert isinstance(context, AppContext)
    return context


def _add_monitoring_routes(app: FastAPI, context: AppContext) -> None:
    @app.get("/health", tags=["monitoring"])
    async def health() -> dict[str, str]:
        """Liveness: whether the process responds."""
        return {"status": "ok"}

    @app.get("/ready", tags=["monitoring"])
    async def ready() -> dict[str, str]:
        """Readiness: whether requests can be answered now; 503 with the reason if not."""
        reason = context.not_ready()
        if reason is not None:
            raise ApiError(503, reason, code="not_ready", retry_after=_NOT_READY_RETRY_SECONDS)
        return {"status": "ready"}

    @app.get("/metrics", tags=["monitoring"], response_class=Response)
    def metrics() -> Response:
        """Metrics for Prometheus."""
        # A sync route runs in a thread; collecting waits for the engine's current step.
        return Response(context.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    def respond(request: Request, error: ApiError) -> Response:
        request.state.info.error_code = error.code
        return Response(error.body(), error.status, error.headers, media_type="application/json")

    async def on_library_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, VipLlavaError)
        api_error = as_api_error(error)
        if api_error.status == 500:  # about the server, so the details go to the log only
            request_id = request.state.info.id
            log.error("id=%s failed: %s: %s", request_id, type(error).__name__, error)
            api_error = internal_error(request_id)
        return respond(request, api_error)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if isinstance(error.body, bytes) and not kind.endswith(("/json", "+json")):
            text = "the body must be JSON, with the header content-type: application/json"
            return respond(request, ApiError(415, text, code="wrong_content_type"))
        return respond(request, validation_error(error.errors()))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text, code = _HTTP_ERRORS.get(error.status_code, (str(error.detail), "invalid_request"))
        response = respond(request, ApiError(error.status_code, text, code=code))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(VipLlavaError, on_library_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
