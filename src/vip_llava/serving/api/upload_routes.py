"""The routes that upload and delete images, for the API and for a controller.

This module does not know how uploads are stored; `uploads` does.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.formparsers import MultiPartException, MultiPartParser

from vip_llava.images import open_image
from vip_llava.serving.api.schemas import UploadCreated, UploadDeleted
from vip_llava.serving.middleware.errors import ApiError, error_responses

if TYPE_CHECKING:
    from vip_llava.serving.api.uploads import UploadStore
    from vip_llava.serving.settings import Limits

__all__ = ["Prepare", "add_upload_routes"]

Prepare = Callable[[Callable[[], tuple[int, int]]], Awaitable[tuple[int, int]]]


def add_upload_routes(app: FastAPI, uploads: UploadStore, prepare: Prepare, limits: Limits) -> None:
    """Add the routes. `prepare` runs image work in a thread."""

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
        responses=error_responses(400, 408, 415, 421),
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
    async def upload(request: Request) -> UploadCreated:
        """Upload an image: the file itself as the body, or a form with `file`."""
        data = await _file_of(request)
        width, height = await prepare(lambda: size_of(data))
        stored = uploads.add(request.state.info.client, data)
        expires = int(stored.expires)
        return UploadCreated(
            id=stored.id, bytes=len(data), width=width, height=height, expires_at=expires
        )

    @app.delete("/v1/uploads/{upload_id}", tags=["uploads"], responses=error_responses(404, 421))
    async def remove(upload_id: str, request: Request) -> UploadDeleted:
        """Delete an upload."""
        uploads.remove(request.state.info.client, upload_id)
        return UploadDeleted(id=upload_id, deleted=True)


async def _file_of(request: Request) -> bytes:
    """The image file of a request. ApiError 415 for another content type, 422 without a file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _file_of_form(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body()
    raise ApiError(
        415,
        "send the image as image/* or application/octet-stream, or a multipart form with `file`",
        code="wrong_content_type",
    )


async def _file_of_form(request: Request) -> bytes:
    """The field `file` of a form. ApiError 400 for an invalid form, 422 without the field."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=4)
    # Starlette spools large files to disk. The whole body is in memory and within its limit
    # already, and clients' images are never written to disk.
    parser.spool_max_size = sys.maxsize
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise ApiError(
            400, "the form is invalid or has more than one file", code="invalid_form"
        ) from None
    try:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise ApiError(
                422, 'the form has no file named "file"', code="invalid_request", param="file"
            )
        return await file.read()
    finally:
        await form.close()
