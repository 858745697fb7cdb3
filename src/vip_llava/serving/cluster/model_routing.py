"""The model name in a request that is forwarded, and the OpenAPI parts of proxies.

It reads nothing else of a request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from vip_llava.serving.middleware.errors import ApiError, error_responses

__all__ = [
    "CHAT_RESPONSES",
    "ERROR_RESPONSES",
    "JSON_OBJECT_BODY",
    "LEGACY_RESPONSES",
    "model_list",
    "requested_model",
    "resolve_model",
]

JSON_OBJECT_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
"""`openapi_extra` of a proxy route: the worker validates the object."""
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = error_responses(
    400, 404, 408, 409, 421, 502, 504
)
CHAT_RESPONSES: dict[int | str, dict[str, Any]] = ERROR_RESPONSES | {
    200: {
        "description": "The answer; with `stream`, server-sent events of its chunks.",
        "content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}},
    }
}
LEGACY_RESPONSES: dict[int | str, dict[str, Any]] = ERROR_RESPONSES | {
    200: {
        "description": "Objects with text and error_code, each followed by a zero byte.",
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    }
}

_LARGE_BODY = 2**18


async def requested_model(body: bytes) -> str | None:
    """The `model` of a request, or None; ApiError 400 if the body is not a JSON object."""
    # Bodies with images are large, and parsing them must not block the loop.
    return await asyncio.to_thread(_model, body) if len(body) > _LARGE_BODY else _model(body)


def _model(body: bytes) -> str | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    name = content.get("model")
    if name is not None and not isinstance(name, str):
        raise ApiError(422, "model: must be a string", code="invalid_request", param="model")
    return name


def resolve_model(name: str | None, models: Sequence[str]) -> str:
    """The requested model; the name is optional if there is one model. ApiError 404 or 503."""
    if name is None and len(models) == 1:
        return models[0]
    if not models:
        raise ApiError(503, "no worker is available yet", code="no_worker", retry_after=5)
    if name is None or name not in models:
        raise ApiError(
            404,
            f"unknown model; available: {', '.join(models)}",
            code="model_not_found",
            param="model",
        )
    return name


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """The body of GET /v1/models."""
    card = {"object": "model", "created": 0, "owned_by": "vip-llava"}
    return {"object": "list", "data": [{"id": name, **card} for name in names]}
