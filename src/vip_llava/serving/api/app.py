"""The API: an application that answers about images with the models it is given.

`create_app` puts routes on the shell. A worker is this application with more routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from prometheus_client import Gauge

from vip_llava.serving.api.answering import Answering
from vip_llava.serving.api.completions import AnswerCounts, Completions
from vip_llava.serving.api.fetch import Fetcher
from vip_llava.serving.api.models import EngineCollector, Loader, Models
from vip_llava.serving.api.schemas import (
    ChatRequest,
    ChatResponse,
    ModelCard,
    ModelList,
)
from vip_llava.serving.api.upload_routes import add_upload_routes
from vip_llava.serving.api.uploads import Uploads
from vip_llava.serving.middleware.app_factory import shell, shell_of
from vip_llava.serving.middleware.errors import error_schema
from vip_llava.serving.settings import ServerSettings

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant

__all__ = ["completions_of", "create_app", "models_of"]


def create_app(
    assistants: Mapping[str, Assistant],
    settings: ServerSettings,
    *,
    loaders: Mapping[str, Loader] | None = None,
    on_failure: Callable[[Exception], None] = lambda _error: None,
    title: str = "vip-llava",
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """The API for models by name. Their engines run as long as the application does.

    loaders: models that are opened once the application runs; until then it is not ready. When one
        fails `on_failure` gets the error, in the thread that opens models.
    fetcher: another door to the network than the one of the settings.
    Raises ServingError for settings that can't be.
    """
    models = Models(assistants, loaders, on_failure)
    answering = Answering(models, settings.limits)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        models.start()
        await answering.start()
        try:
            yield
        finally:
            await answering.stop()
            models.stop()

    app = shell(settings, title=title, lifespan=lifespan)
    app.state.models = models
    app.state.answering = answering
    parts = shell_of(app)
    parts.ready_when(models.not_ready)
    parts.metrics.registry.register(EngineCollector(models))
    Gauge(
        "vip_llava_answers_open", "Answers being made or waiting.", registry=parts.metrics.registry
    ).set_function(lambda: answering.places_taken)
    uploads = Uploads(settings.limits)
    completions = Completions(
        settings=settings,
        answering=answering,
        uploads=uploads,
        fetcher=fetcher or Fetcher(settings.fetch_hosts, settings.limits),
        counts=AnswerCounts(parts.metrics.registry),
    )
    app.state.completions = completions
    _add_chat(app, completions)
    _add_models(app, models)
    add_upload_routes(app, uploads, answering.prepare, settings.limits)
    return app


def completions_of(app: FastAPI) -> Completions:
    """What answers chat requests in an application made by `create_app`."""
    completions = app.state.completions
    assert isinstance(completions, Completions)
    return completions


def models_of(app: FastAPI) -> Models:
    """The models of an application made by `create_app`."""
    models = app.state.models
    assert isinstance(models, Models)
    return models


def _add_chat(app: FastAPI, completions: Completions) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={
            **error_schema(400, 404, 408, 421, 502, 504),
            200: {
                "description": "The answer; with `stream`, server-sent events of its pieces.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
        },
        tags=["chat"],
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Ask about images and regions of them."""
        return await completions.reply(body, request)


def _add_models(app: FastAPI, models: Models) -> None:
    def card(name: str) -> ModelCard:
        found = models.open_now().get(name)
        about: dict[str, Any] | None = None
        if found is not None:
            info = asdict(found.info)
            # The name it was opened by may be a folder of this machine.
            about = {key: value for key, value in info.items() if key != "name"}
        return ModelCard(id=name, created=models.created, vip_llava=about)

    @app.get("/v1/models", tags=["models"], responses=error_schema(421))
    async def list_models() -> ModelList:
        """The models that can be asked."""
        return ModelList(data=[card(name) for name in models.names])

    @app.get("/v1/models/{model:path}", tags=["models"], responses=error_schema(404, 421))
    async def one_model(model: str) -> ModelCard:
        """One of them."""
        if model not in models.names:
            models.get(model)  # raises the Problem
        return card(model)
