"""Uploads of clients at a controller: kept there, and put into the requests that speak of them.

Workers come and go and know no clients, so an image that was left at the controller travels with
each request as a data: address. Only the addresses of images are looked at.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

from vip_llava.serving.middleware.errors import Problem

if TYPE_CHECKING:
    from vip_llava.serving.api.uploads import Uploads
    from vip_llava.serving.settings import Limits

__all__ = ["with_uploads"]

_MARK = b"upload:"


async def with_uploads(body: bytes, owner: str, uploads: Uploads, limits: Limits) -> bytes:
    """The body of a chat request with data: addresses where uploads of `owner` are named.

    Raises Problem 404 for an upload that is not there, 422 where the body would become too large.
    """
    if _MARK not in body.lower():
        return body
    content = await asyncio.to_thread(json.loads, body)  # it was read before: it is JSON
    left = limits.bodies_bytes // 4
    for place, address in _addresses(content):
        url = address["url"]
        if not isinstance(url, str) or not url.lower().startswith(_MARK.decode()):
            continue
        try:
            data = uploads.get(owner, url[len(_MARK) :]).data
        except Problem as problem:
            raise Problem(
                problem.status, f"{place}: {problem.message}", code=problem.code, param=place
            ) from None
        left -= len(data)
        if left < 0:
            raise Problem(
                422, "the uploads of this request are too large together", code="over_limit"
            )
        encoded = await asyncio.to_thread(base64.b64encode, data)
        address["url"] = "data:application/octet-stream;base64," + encoded.decode()
    return await asyncio.to_thread(lambda: json.dumps(content).encode())


def _addresses(content: Any) -> list[tuple[str, dict[str, Any]]]:
    """Places and objects of all image addresses; what has another shape is the worker's to refuse."""
    found = []
    messages = content.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        parts = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(parts if isinstance(parts, list) else []):
            address = part.get("image_url") if isinstance(part, dict) else None
            if isinstance(address, dict) and "url" in address:
                place = f"messages[{index}].content[{number}].image_url.url"
                found.append((place, address))
    return found
