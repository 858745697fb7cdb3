"""What goes wrong with a request, as clients of the OpenAI API expect to be told.

{"error": {"message", "type", "param", "code"}} with a fitting status, `Retry-After` where trying
again makes sense. The library's own errors become such answers here and nowhere else.
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

__all__ = ["Problem", "as_problem", "broken_rules", "error_schema", "internal"]

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
_ALTERNATIVES = frozenset({"system", "developer", "user", "assistant", "text", "image_url"})


class Problem(ServingError):  # noqa: N818 - it is an answer as much as an error
    """An answer that is an error. `param` names the key of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`retry_after`: seconds after which the same request may do."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        """`to_json` as bytes; half of a surrogate pair, which UTF-8 can't hold, is escaped."""
        return json.dumps(self.to_json()).encode()

    @property
    def headers(self) -> dict[str, str]:
        """Header fields of the answer besides its length and kind."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def as_problem(error: VipLlavaError, *, param: str | None = None) -> Problem:
    """What a client is told of an error of the library."""
    if isinstance(error, Problem):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Problem(422, str(error), code=code, param=param)
    if isinstance(error, MissingExtraError):
        return Problem(501, str(error), code="not_installed", param=param)
    # Anything else speaks of the server (files, weights), which is no business of a client.
    return internal()


def internal(request_id: str | None = None) -> Problem:
    """A fault of the server: nothing of it is told but where to look for it."""
    named = f"; the log has more under request id {request_id}" if request_id else ""
    return Problem(500, f"the server failed to answer{named}", code="internal_error")


def broken_rules(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The first of pydantic's complaints about a body, and how many there are more.

    What was given is not repeated: it may be long, and belongs in no log of a client.
    """
    # Of a text or a list the text is tried first; what is wrong in a list is what helps.
    told = [each for each in errors if not any(map(_is_alternative, each["loc"][-1:]))] or errors
    first = told[0]
    place = list(first.get("loc", ()))
    if place[:1] in (["body"], ["query"], ["path"], ["header"]):
        place = place[1:]
    if first.get("type") == "json_invalid":
        return Problem(400, "the body is no JSON", code="invalid_json")
    param = _dotted(place)
    text = str(first.get("msg", "not allowed")).removeprefix("Value error, ")
    if first.get("type") == "extra_forbidden":
        text = "unknown key; see the documentation for what a request may hold"
    more = f" ({len(told) - 1} more)" if len(told) > 1 else ""
    where = f"{param}: " if param else ""
    return Problem(422, f"{where}{text}{more}", code="invalid_request", param=param or None)


def _dotted(place: Sequence[object]) -> str:
    """`messages[0].content` of ["messages", 0, "user", "content"]; long keys are cut.

    pydantic also names which alternative it tried, which is no key of the body.
    """
    text = ""
    for before, part in zip((None, *place), place, strict=False):
        if _is_alternative(part) or (isinstance(part, str) and part.startswith("list[")):
            continue
        if isinstance(before, int) and part in _ALTERNATIVES:
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = str(part)
            name = name if len(name) <= 60 else f"{name[:60]}..."
            text += f".{name}" if text else name
    return text


def _is_alternative(part: object) -> bool:
    """Whether a part of a place is pydantic's name for the plain text of a text or a list."""
    return part == "str" or (isinstance(part, str) and part.startswith("function-"))


def error_schema(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a FastAPI route for these statuses."""
    about = {
        400: "The body is no JSON.",
        401: "No API key, or none that is known.",
        403: "Not allowed to this page or host.",
        404: "No such model or upload.",
        405: "The method does not fit.",
        408: "The body came too slowly.",
        409: "A worker wants to be registered for other models than it serves.",
        413: "The body is too large.",
        415: "The body is of the wrong kind.",
        421: "The Host header names another server.",
        422: "Something in the request does not fit; `param` says what.",
        429: "Too many requests of one client; try again after `Retry-After` seconds.",
        500: "A fault of the server.",
        501: "Not installed on this server.",
        502: "A server behind this one failed.",
        503: "Busy, loading or stopping; try again after `Retry-After` seconds.",
        504: "The answer took too long.",
    }
    schema = {
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
    content = {"application/json": {"schema": schema}}
    return {status: {"description": about[status], "content": content} for status in statuses}
