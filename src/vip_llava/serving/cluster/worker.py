"""A worker: the API with the original's routes, and a place at a controller.

What it answers is what the API answers; the original's request is turned into one of the API's, so
that the same checks, limits and engine stand behind both. It joins its controller once all its
models are open, and leaves it before it stops.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from vip_llava.serving.api.app import completions_of, create_app, models_of

# isort: split
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import Response

from vip_llava.errors import VipLlavaError
from vip_llava.serving.api.schemas import ChatRequest
from vip_llava.serving.cluster.legacy import ERROR_CODE, LegacyRequest, line, read_prompt
from vip_llava.serving.cluster.model_routing import LEGACY_ANSWER
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.worker_status import Join, add_status_route, as_member, stay_joined
from vip_llava.serving.middleware.errors import Problem, as_problem, broken_rules
from vip_llava.serving.middleware.stream import EventStream

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant
    from vip_llava.serving.api.models import Loader
    from vip_llava.serving.cluster.signing import Secret
    from vip_llava.serving.settings import ServerSettings

__all__ = ["create_worker"]

_STREAM_TYPE = "application/octet-stream"
_PATIENCE_SECONDS = 4.0
"""The original's page gives up when nothing has come for ten seconds."""

log = logging.getLogger("vip_llava.serving")


def create_worker(
    assistants: Mapping[str, Assistant],
    settings: ServerSettings,
    *,
    loaders: Mapping[str, Loader] | None = None,
    on_failure: Callable[[Exception], None] = lambda _error: None,
    secret: Secret | None = None,
    join: Join | None = None,
    speed: float = 1.0,
) -> FastAPI:
    """The application of a worker for models by name.

    loaders, on_failure: as of `create_app`. secret: of the cluster; without one it stands alone.
    join: makes the place at a controller from a function that gives the status. speed: for dispatch.
    """
    if secret is not None:
        settings = as_member(settings, secret)
    app = create_app(
        assistants, settings, loaders=loaders, on_failure=on_failure, title="vip-llava worker"
    )
    models = models_of(app)

    def status() -> WorkerStatus:
        found = [each.engine.stats() for each in models.open_now().values()]
        return WorkerStatus(
            model_names=list(models.names),
            speed=speed,
            queue_length=sum(stats.running + stats.waiting for stats in found),
        )

    add_status_route(app, status, secret)
    _add_generate_route(app)
    if join is not None:
        stay_joined(app, join(status))
    return app


def _add_generate_route(app: FastAPI) -> None:
    @app.post(
        "/worker_generate_stream",
        tags=["original"],
        response_class=Response,
        responses=LEGACY_ANSWER,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": LegacyRequest.model_json_schema()}},
            }
        },
    )
    async def worker_generate_stream(request: Request) -> Response:
        """The original's request and stream. What is wrong with it comes as an object with a code."""
        body = await request.body()
        try:
            json_body = LegacyRequest.model_validate_json(body)
        except ValidationError as error:
            raise broken_rules(error.errors(include_input=False, include_url=False)) from None
        try:
            chat = _as_chat(json_body, app)
            events = await completions_of(app).events(chat, request)
        except VipLlavaError as error:
            problem = as_problem(error)
            if problem.status in (429, 499, 503):
                raise problem from None  # another worker may answer it
            return Response(line(problem.message, ERROR_CODE), media_type=_STREAM_TYPE)
        return EventStream(
            _lines(json_body.prompt, events),
            media_type=_STREAM_TYPE,
            still_here=line(json_body.prompt),
            every=_PATIENCE_SECONDS,
        )


def _as_chat(given: LegacyRequest, app: FastAPI) -> ChatRequest:
    """The same request as one of the API's. Raises the VipLlavaError of whatever is wrong."""
    models = models_of(app)
    name = given.model or models.names[0]
    images, regions = given.images or [], given.regions or []
    if len(regions) > len(images):
        raise Problem(422, "regions: more lists than images", code="invalid_request")
    turns = read_prompt(given.prompt, models.get(name).processor.template, len(images))
    messages = []
    for turn in turns:
        parts: list[dict[str, Any]] = [{"type": "text", "text": turn.text}]
        for place in turn.images:
            address = f"data:application/octet-stream;base64,{images[place]}"
            drawn = regions[place] if place < len(regions) else []
            parts.append({"type": "image_url", "image_url": {"url": address}, "regions": drawn})
        messages.append({"role": turn.role, "content": parts})
    sampling = given.sampling()
    sampling["max_tokens"] = sampling.pop("max_new_tokens")
    try:
        return ChatRequest.model_validate(
            {"model": name, "messages": messages, "stream": True, **sampling}
        )
    except ValidationError as error:
        raise broken_rules(error.errors(include_input=False, include_url=False)) from None


async def _lines(prompt: str, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The API's events as the original's stream: prompt and answer so far, each time anew."""
    text = prompt
    async with contextlib.aclosing(events):
        async for event in events:
            content = event.removeprefix(b"data: ")
            if not content.startswith(b"{"):
                continue
            found = json.loads(content)
            if "error" in found:
                yield line(found["error"]["message"], ERROR_CODE)
                return
            pieces = [choice["delta"].get("content", "") for choice in found["choices"]]
            more = "".join(pieces)
            ends = any(choice["finish_reason"] for choice in found["choices"])
            text += more
            if more or ends:
                yield line(text)
