"""Leaving images at a server and taking them back: the routes of uploads.

Used by the API and by a controller; where uploads are kept is the business of `uploads`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.formparsers import MultiPartException, MultiPartParser

from vip_llava.images import open_image
from vip_llava.serving.api.schemas import Removed, Uploaded
from vip_llava.serving.middleware.errors import Problem, error_schema

if TYPE_CHECKING:
    from vip_llava.serving.api.uploads import Uploads
    from vip_llava.serving.settings import Limits

__all__ = ["Prepare", "add_upload_routes"]

Prepare = Callable[[Callable[[], tuple[int, int]]], Awaitable[tuple[int, int]]]


def add_upload_routes(app: FastAPI, uploads: Uploads, prepare: Prepare, limits: Limits) -> None:
    """Add them. `prepare` runs work on images in a thread."""

    def size_of(data: bytes) -> tuple[int, int]:
        return open_image(data, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes).size

    image = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {"file": {"type": "string", "format": "binary"}},
        }
    }

    @app.post(
        "/v1/uploads",
        tags=["uploads"],
        status_code=201,
        responses=error_schema(400, 408, 415, 421),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": form,
                    "application/octet-stream": image,
                    "image/*": image,
                },
            }
        },
    )
    async def upload(request: Request) -> Uploaded:
        """Leave an image here for a while: the file itself as the body, or a form with `file`."""
        data = await _file_of(request)
        width, height = await prepare(lambda: size_of(data))
        kept = uploads.add(request.state.passage.client, data)
        return Uploaded(
            id=kept.id,
            bytes=len(data),
            width=width,
            height=height,
            expires_at=int(kept.expires),
        )

    @app.delete("/v1/uploads/{upload_id}", tags=["uploads"], responses=error_schema(404, 421))
    async def remove(upload_id: str, request: Request) -> Removed:
        """Forget an upload."""
        uploads.remove(request.state.passage.client, upload_id)
        return Removed(id=upload_id, deleted=True)


async def _file_of(request: Request) -> bytes:
    """The image file of a request. Problem 415 for other kinds of bodies, 422 without a file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _file_of_form(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body()
    raise Problem(
        415,
        "send the image as image/* or application/octet-stream, or a multipart form with `file`",
        code="wrong_content_type",
    )


async def _file_of_form(request: Request) -> bytes:
    """The field `file` of a form. Problem 400 for what is no form, 422 without the field."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=4)
    # Starlette moves larger files to a disk. The whole body is in memory and within its limit
    # already, and images of clients are written nowhere.
    parser.spool_max_size = sys.maxsize
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise Problem(
            400, "the form can't be read, or has more than one file", code="invalid_form"
        ) from None
    try:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise Problem(
                422, 'the form has no file named "file"', code="invalid_request", param="file"
            )
        return await file.read()
    finally:
        await form.close()
