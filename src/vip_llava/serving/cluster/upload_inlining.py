"""`inline_uploads`: replaces upload:ID in a forwarded request by the uploaded image.

Uploads stay at the controller, because workers come and go and do not know clients. Only the
image URLs of a request are read.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vip_llava.serving.middleware.errors import ApiError

if TYPE_CHECKING:
    from vip_llava.serving.api.uploads import UploadStore
    from vip_llava.serving.settings import Limits

__all__ = ["inline_uploads"]

_SCHEME = "upload:"


async def inline_uploads(body: bytes, owner: str, uploads: UploadStore, limits: Limits) -> bytes:
    """The body of a chat request with data: URLs in place of the uploads of `owner`.

    Raises:
        ApiError: 404 for an unknown upload, 422 if the uploads are too large together.
    """
    if _SCHEME.encode() not in body.lower():
        return body
    content = await asyncio.to_thread(json.loads, body)  # the model name was read from it before
    bytes_left = limits.bodies_bytes // 4
    for param, image_url in _image_urls(content):
        url = image_url["url"]
        if not isinstance(url, str) or not url.lower().startswith(_SCHEME):
            continue
        try:
            data = uploads.get(owner, url[len(_SCHEME) :]).data
        except ApiError as error:
            raise error.at(param) from None
        bytes_left -= len(data)
        if bytes_left < 0:
            raise ApiError(
                422, "the uploads of this request are too large together", code="over_limit"
            )
        encoded = await asyncio.to_thread(base64.b64encode, data)
        image_url["url"] = "data:application/octet-stream;base64," + encoded.decode()
    return await asyncio.to_thread(lambda: json.dumps(content).encode())


def _image_urls(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and object of each image URL; the worker refuses what has another form."""
    messages = content.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        parts = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(parts if isinstance(parts, list) else []):
            image_url = part.get("image_url") if isinstance(part, dict) else None
            if isinstance(image_url, dict) and "url" in image_url:
                yield f"messages[{index}].content[{number}].image_url.url", image_url
