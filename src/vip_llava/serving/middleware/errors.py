"""`ApiError`: an HTTP error in the form that clients of the OpenAI API expect.

The body is {"error": {"message", "type", "param", "code"}}, with a fitting status and
`Retry-After` where a retry may succeed. This module alone translates the library's own errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vip_llava.errors import (
    ImageError,
    MissingExtraError,
    PhraseError,
    RegionError,
    RequestError,
    ServingError,
    TemplateError,
    VipLlavaError,
)

__all__ = ["ApiError", "as_api_error", "error_responses", "internal_error", "validation_error"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
_CODES: Sequence[tuple[type[VipLlavaError], str]] = (
    (RegionError, "invalid_region"),
    (PhraseError, "invalid_region_reference"),
    (ImageError, "invalid_image"),
    (TemplateError, "invalid_conversation"),
    (RequestError, "invalid_request"),
)
_DESCRIPTIONS = {
    400: "The body is not valid JSON.",
    401: "The API key is missing or unknown.",
    403: "This web page or host is not allowed.",
    404: "No such model or upload.",
    405: "The method is not allowed.",
    408: "The body arrived too slowly.",
    409: "A worker registers models that it does not serve.",
    413: "The body is too large.",
    415: "The content type of the body is not supported.",
    421: "The Host header names another server.",
    422: "The request is invalid; `param` names the place.",
    429: "Too many requests from one client; retry after `Retry-After` seconds.",
    500: "Internal error.",
    501: "Not installed on this server.",
    502: "An upstream server failed.",
    503: "Busy, loading or stopping; retry after `Retry-After` seconds.",
    504: "The answer took too long.",
}
_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_UNION_TAGS = frozenset({"system", "developer", "user", "assistant", "text", "image_url"})


class ApiError(ServingError):
    """An error response. `param` names the key of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """retry_after: seconds after which the same request may succeed."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def at(self, param: str) -> ApiError:
        """The same error with the place in the body that it belongs to."""
        message = f"{param}: {self.message}"
        return ApiError(
            self.status, message, code=self.code, param=param, retry_after=self.retry_after
        )

    def to_json(self) -> dict[str, Any]:
        """The body as a JSON value."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}

    def body(self) -> bytes:
        """`to_json` as ASCII bytes; a lone surrogate, which UTF-8 can't encode, is escaped."""
        return json.dumps(self.to_json()).encode()

    @property
    def headers(self) -> dict[str, str]:
        """Response headers besides content length and type."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def as_api_error(error: VipLlavaError, *, param: str | None = None) -> ApiError:
    """The response for an error of the library."""
    if isinstance(error, ApiError):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            return ApiError(422, str(error), code=code, param=param)
    if isinstance(error, MissingExtraError):
        return ApiError(501, str(error), code="not_installed", param=param)
    # Other errors describe the server's files and weights, which clients must not learn.
    return internal_error()


def internal_error(request_id: str | None = None) -> ApiError:
    """A 500 response that tells nothing but the request id under which the log has details."""
    hint = f"; see the log for request id {request_id}" if request_id else ""
    return ApiError(500, f"internal error{hint}", code="internal_error")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors about a body, and the number of the others.

    The rejected value is not repeated: it may be long, and it must not reach logs.
    """
    # For a union of string and list, pydantic reports both; the error in the list is the useful one.
    useful = [each for each in errors if not any(map(_is_union_tag, each["loc"][-1:]))] or errors
    first = useful[0]
    loc = list(first.get("loc", ()))
    if loc[:1] in (["body"], ["query"], ["path"], ["header"]):
        loc = loc[1:]
    if first.get("type") == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    param = _dotted(loc)
    text = str(first.get("msg", "invalid value")).removeprefix("Value error, ")
    if first.get("type") == "extra_forbidden":
        text = "unknown key"
    more = f" ({len(useful) - 1} more errors)" if len(useful) > 1 else ""
    where = f"{param}: " if param else ""
    return ApiError(422, f"{where}{text}{more}", code="invalid_request", param=param or None)


def _dotted(loc: Sequence[object]) -> str:
    """`messages[0].content` for ["messages", 0, "user", "content"]; long keys are truncated.

    pydantic puts the tag of the tried union member into the location, which is not a key.
    """
    text = ""
    for before, part in zip((None, *loc), loc, strict=False):
        if _is_union_tag(part) or (isinstance(part, str) and part.startswith("list[")):
            continue
        if isinstance(before, int) and part in _UNION_TAGS:
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = str(part)
            name = name if len(name) <= 60 else f"{name[:60]}..."
            text += f".{name}" if text else name
    return text


def _is_union_tag(part: object) -> bool:
    """Whether a part of a location is pydantic's name for the string member of a union."""
    return part == "str" or (isinstance(part, str) and part.startswith("function-"))


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a FastAPI route for these statuses."""
    content = {"application/json": {"schema": _SCHEMA}}
    return {each: {"description": _DESCRIPTIONS[each], "content": content} for each in statuses}
