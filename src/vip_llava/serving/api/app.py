"""`create_app`: the API as one application. A worker is this application with more routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from prometheus_client import Gauge

from vip_llava.serving.api.completions import AnswerMetrics, ChatCompletions
from vip_llava.serving.api.fetch import ImageFetcher
from vip_llava.serving.api.generation import GenerationPool
from vip_llava.serving.api.models import EngineCollector, Loader, ServedModels
from vip_llava.serving.api.schemas import (
    ChatRequest,
    ChatResponse,
    ModelCard,
    ModelList,
)
from vip_llava.serving.api.upload_routes import add_upload_routes
from vip_llava.serving.api.uploads import UploadStore
from vip_llava.serving.middleware.app_factory import context_of, create_base_app
from vip_llava.serving.middleware.errors import error_responses
from vip_llava.serving.settings import ServerSettings

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant

__all__ = ["chat_completions", "create_app", "served_models"]


def create_app(
    assistants: Mapping[str, Assistant],
    settings: ServerSettings,
    *,
    loaders: Mapping[str, Loader] | None = None,
    on_failure: Callable[[Exception], None] = lambda _error: None,
    title: str = "vip-llava",
    fetcher: ImageFetcher | None = None,
) -> FastAPI:
    """The API for models by name; their engines run as long as the application does.

    Args:
        loaders: models to load once the application runs; until then it is not ready.
        on_failure: called in the loading thread with the error of a model that fails to load.
        fetcher: replaces the fetcher made from the settings.
    """
    models = ServedModels(assistants, loaders, on_failure)
    pool = GenerationPool(models, settings.limits)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        models.start()
        await pool.start()
        try:
            yield
        finally:
            await pool.stop()
            models.stop()

    app = create_base_app(settings, title=title, lifespan=lifespan)
    app.state.models = models
    app.state.generations = pool
    context = context_of(app)
    context.add_readiness_check(models.not_ready)
    context.metrics.registry.register(EngineCollector(models))
    Gauge(
        "vip_llava_answers_open", "Answers running or waiting.", registry=context.metrics.registry
    ).set_function(lambda: pool.reserved)
    uploads = UploadStore(settings.limits)
    completions = ChatCompletions(
        settings=settings,
        pool=pool,
        uploads=uploads,
        fetcher=fetcher or ImageFetcher(settings.fetch_hosts, settings.limits),
        metrics=AnswerMetrics(context.metrics.registry),
    )
    app.state.completions = completions
    _add_chat(app, completions)
    _add_models(app, models)
    add_upload_routes(app, uploads, pool.prepare, settings.limits)
    return app


def chat_completions(app: FastAPI) -> ChatCompletions:
    """The chat handler of an application made by `create_app`."""
    completions = app.state.completions
    assert isinstance(completions, ChatCompletions)
    return completions


def served_models(app: FastAPI) -> ServedModels:
    """The models of an application made by `create_app`."""
    models = app.state.models
    assert isinstance(models, ServedModels)
    return models


def _add_chat(app: FastAPI, completions: ChatCompletions) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={
            **error_responses(400, 404, 408, 421, 502, 504),
            200: {
                "description": "The answer; with `stream`, server-sent events of its chunks.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
        },
        tags=["chat"],
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Ask about images and regions of them."""
        return await completions.reply(body, request)


def _add_models(app: FastAPI, models: ServedModels) -> None:
    def card(name: str) -> ModelCard:
        found = models.loaded().get(name)
        about: dict[str, Any] | None = None
        if found is not None:
            info = asdict(found.info)
            # The name it was loaded by may be a folder of this machine.
            about = {key: value for key, value in info.items() if key != "name"}
        return ModelCard(id=name, created=models.created, vip_llava=about)

    @app.get("/v1/models", tags=["models"], responses=error_responses(421))
    async def list_models() -> ModelList:
        """The served models."""
        return ModelList(data=[card(name) for name in models.names])

    @app.get("/v1/models/{model:path}", tags=["models"], responses=error_responses(404, 421))
    async def one_model(model: str) -> ModelCard:
        """One served model."""
        if model not in models.names:
            models.get(model)  # raises ApiError 404
        return card(model)
