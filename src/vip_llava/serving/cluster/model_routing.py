"""The model that a request asks for, where requests are passed on and not understood.

Shared by whatever stands in front of workers; it reads nothing else of a request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from vip_llava.serving.middleware.errors import Problem, error_schema

__all__ = [
    "ANY_ERROR",
    "ANY_OBJECT",
    "CHAT_ANSWER",
    "LEGACY_ANSWER",
    "chosen_model",
    "model_list",
    "model_of",
]

ANY_OBJECT = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
"""For the OpenAPI document: what is in the object is the worker's business."""
ANY_ERROR: dict[int | str, dict[str, Any]] = error_schema(400, 404, 408, 409, 421, 502, 504)
CHAT_ANSWER: dict[int | str, dict[str, Any]] = ANY_ERROR | {
    200: {
        "description": "The answer; with `stream`, server-sent events of its pieces.",
        "content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}},
    }
}
LEGACY_ANSWER: dict[int | str, dict[str, Any]] = ANY_ERROR | {
    200: {
        "description": "Objects with text and error_code, each followed by a zero byte.",
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    }
}

_LONG_BODY = 2**18


async def model_of(body: bytes) -> str | None:
    """The `model` of a request, None if it names none; Problem 400 if it is no JSON object."""
    # Images make long bodies, whose reading must not keep the others waiting.
    return await asyncio.to_thread(_model, body) if len(body) > _LONG_BODY else _model(body)


def _model(body: bytes) -> str | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON", code="invalid_json") from None
    if not isinstance(content, dict):
        raise Problem(400, "the body is no JSON object", code="invalid_json")
    name = content.get("model")
    if name is not None and not isinstance(name, str):
        raise Problem(422, "model: not a text", code="invalid_request", param="model")
    return name


def chosen_model(name: str | None, known: Sequence[str]) -> str:
    """The model that is asked for; with one model only it need not be named. Problem 404, 503."""
    if name is None and len(known) == 1:
        return known[0]
    if not known:
        raise Problem(503, "no worker is there yet", code="no_worker", retry_after=5)
    if name is None or name not in known:
        raise Problem(
            404,
            f"no worker serves this model; there are: {', '.join(known)}",
            code="model_not_found",
            param="model",
        )
    return name


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """GET /v1/models in the shape of the API."""
    about = {"object": "model", "created": 0, "owned_by": "vip-llava"}
    return {"object": "list", "data": [{"id": name, **about} for name in names]}
