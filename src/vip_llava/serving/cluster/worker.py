"""`create_worker`: the API plus the original's routes, registered at a controller.

A request in the original's format is converted to one of the API, so that the same validation,
limits and engine serve both. The worker registers once all its models are loaded, and unregisters
before it stops.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from vip_llava.backends.native import as_native
from vip_llava.serving.api.app import chat_completions, create_app, served_models

# isort: split
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import Response

from vip_llava.errors import VipLlavaError
from vip_llava.serving.api.completions import ChatCompletions, StartedChat, stream_error
from vip_llava.serving.api.schemas import ChatRequest
from vip_llava.serving.cluster.heartbeat import HEARTBEAT_SECONDS, HeartbeatClient
from vip_llava.serving.cluster.legacy import (
    ERROR_CODE,
    LegacyRequest,
    legacy_chunk,
    parse_prompt,
)
from vip_llava.serving.cluster.model_routing import LEGACY_RESPONSES
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.worker_status import (
    add_status_route,
    keep_registered,
    worker_settings,
)
from vip_llava.serving.middleware.errors import ApiError, as_api_error, validation_error
from vip_llava.serving.middleware.stream import event_stream

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant
    from vip_llava.serving.api.models import Loader
    from vip_llava.serving.cluster.signing import Secret
    from vip_llava.serving.settings import ServerSettings

__all__ = ["create_worker"]

_STREAM_TYPE = "application/octet-stream"
_PING_SECONDS = 4.0  # the original's page gives up after ten seconds without data


def create_worker(
    assistants: Mapping[str, Assistant],
    settings: ServerSettings,
    *,
    loaders: Mapping[str, Loader] | None = None,
    on_failure: Callable[[Exception], None] = lambda _error: None,
    secret: Secret | None = None,
    controller: str | None = None,
    address: str = "",
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    speed: float = 1.0,
) -> FastAPI:
    """The application of a worker for models by name.

    Args:
        loaders, on_failure: as of `create_app`.
        secret: of the cluster; None for a standalone worker.
        controller: URL of the controller to register at, which needs a secret; None for none.
        address: URL of this worker as the controller reaches it.
        heartbeat_seconds: interval of heartbeats; a controller may ask for a shorter one.
        speed: weight of this worker for dispatch.

    Raises:
        ServingError: an invalid URL.
    """
    if secret is not None:
        settings = worker_settings(settings, secret)
    app = create_app(
        assistants, settings, loaders=loaders, on_failure=on_failure, title="vip-llava worker"
    )
    models = served_models(app)

    def status() -> WorkerStatus:
        stats = [as_native(each.backend).engine.stats() for each in models.loaded().values()]
        return WorkerStatus(
            model_names=list(models.names),
            speed=speed,
            queue_length=sum(each.running + each.waiting for each in stats),
        )

    add_status_route(app, status, secret)
    _add_generate_route(app)
    if controller is not None and secret is not None:
        client = HeartbeatClient(controller, address, secret, status, interval=heartbeat_seconds)
        keep_registered(app, client)
    return app


def _add_generate_route(app: FastAPI) -> None:
    completions = chat_completions(app)
    schema = {"application/json": {"schema": LegacyRequest.model_json_schema()}}

    @app.post(
        "/worker_generate_stream",
        tags=["original"],
        response_class=Response,
        responses=LEGACY_RESPONSES,
        openapi_extra={"requestBody": {"required": True, "content": schema}},
    )
    async def worker_generate_stream(request: Request) -> Response:
        """The original's request and stream; an error is an object with an error_code."""
        try:
            given = LegacyRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise validation_error(error.errors(include_input=False, include_url=False)) from None
        try:
            chat = await completions.start(_as_chat_request(given, app), request)
        except VipLlavaError as error:
            api_error = as_api_error(error)
            if api_error.status in (429, 499, 503):
                raise api_error from None  # another worker may answer it
            return Response(legacy_chunk(api_error.message, ERROR_CODE), media_type=_STREAM_TYPE)
        stream = _LegacyStream(given.prompt)
        return event_stream(
            stream.chunks(completions, chat),
            media_type=_STREAM_TYPE,
            ping=stream.repeat,
            ping_seconds=_PING_SECONDS,
        )


class _LegacyStream:
    """The original's stream: each chunk has the prompt and the answer so far."""

    def __init__(self, prompt: str) -> None:
        self._text = prompt

    def repeat(self) -> bytes:
        """The last chunk again, as a keep-alive."""
        return legacy_chunk(self._text)

    async def chunks(
        self, completions: ChatCompletions, chat: StartedChat
    ) -> AsyncGenerator[bytes]:
        """The chunks of the only generation; an error is the last one."""
        (generation,) = chat.generations
        try:
            async for event in generation.events():
                self._text += event.text
                if event.finish_reason is not None:
                    await completions.finish(chat, generation)
                if event.text or event.finish_reason is not None:
                    yield legacy_chunk(self._text)
        except Exception as error:
            yield legacy_chunk(stream_error(error, chat.request_id).message, ERROR_CODE)


def _as_chat_request(given: LegacyRequest, app: FastAPI) -> ChatRequest:
    """The same request in the API's format. Raises the VipLlavaError of an invalid request."""
    models = served_models(app)
    name = given.model or models.names[0]
    images, regions = given.images or [], given.regions or []
    if len(regions) > len(images):
        raise ApiError(422, "regions: more lists than images", code="invalid_request")
    template = as_native(models.get(name).backend).processor.template
    messages = []
    for turn in parse_prompt(given.prompt, template, len(images)):
        parts: list[dict[str, Any]] = [{"type": "text", "text": turn.text}]
        for index in turn.images:
            url = f"data:application/octet-stream;base64,{images[index]}"
            drawn = regions[index] if index < len(regions) else []
            parts.append({"type": "image_url", "image_url": {"url": url}, "regions": drawn})
        messages.append({"role": turn.role, "content": parts})
    sampling = given.sampling()
    sampling["max_tokens"] = sampling.pop("max_new_tokens")
    try:
        return ChatRequest.model_validate(
            {"model": name, "messages": messages, "stream": True, **sampling}
        )
    except ValidationError as error:
        raise validation_error(error.errors(include_input=False, include_url=False)) from None
