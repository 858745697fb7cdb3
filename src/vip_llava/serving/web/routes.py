"""The page's own routes: images in and out, outlines, mask suggestions, and the scripts.

An image arrives as the bytes of a file and gets an id; a path or URL sent by a browser has no
meaning here. Errors have the API's format.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from vip_llava.images import open_image
from vip_llava.serving.api.replies import as_png
from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.settings import Limits
from vip_llava.serving.web import outlines
from vip_llava.serving.web.image_store import ImageStore, StoredImage
from vip_llava.serving.web.suggest import MaskSuggester

__all__ = ["EXAMPLES", "STATIC", "page_routes"]

STATIC = Path(__file__).with_name("static")
#: Example photos: name -> file under `static/photos`.
EXAMPLES: Mapping[str, str] = {"a cat": "cat.jpg", "a cup of coffee": "coffee.jpg"}
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".jpg": "image/jpeg"}


def page_routes(images: ImageStore, suggester: MaskSuggester | None, limits: Limits) -> APIRouter:
    """The routes under /page; without a `suggester`, /page/suggest returns 501."""
    router = APIRouter(prefix="/page", include_in_schema=False)
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*.*")}
    semaphore = asyncio.Semaphore(limits.preparing)  # decoding and suggesting use a core each

    @router.get("/static/{name:path}")
    async def static(name: str) -> Response:
        path = files.get(name)
        if path is None or path.suffix not in _MEDIA_TYPES:
            raise ApiError(404, "no such file", code="not_found")
        return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix])

    @router.post("/images")
    async def put(request: Request) -> dict[str, Any]:
        content = await request.body()
        async with semaphore:
            return _description(await asyncio.to_thread(_store, images, content, limits))

    @router.post("/examples/{number}")
    async def example(number: int) -> dict[str, Any]:
        if not 0 <= number < len(EXAMPLES):
            raise ApiError(404, "no such example", code="not_found")
        content = (STATIC / "photos" / list(EXAMPLES.values())[number]).read_bytes()
        return _description(await asyncio.to_thread(_store, images, content, limits))

    @router.get("/images/{image_id}")
    async def get(image_id: str, exact: bool = False) -> Response:
        """`exact`: as PNG, also if the stored file is a JPEG."""
        stored = _get(images, image_id)
        headers = {"cache-control": "private, max-age=3600, immutable"}
        if exact and stored.media_type != "image/png":
            content = await asyncio.to_thread(as_png, stored.image)
            return Response(content, media_type="image/png", headers=headers)
        return Response(stored.content, media_type=stored.media_type, headers=headers)

    @router.post("/outline")
    async def outline(request: Request) -> dict[str, Any]:
        given = await _json_object(request)
        return {"polygons": await asyncio.to_thread(outlines.of_loop, given.get("points"))}

    @router.post("/suggest")
    async def suggest(request: Request) -> dict[str, Any]:
        if suggester is None:
            raise ApiError(501, "this server does not suggest masks", code="not_installed")
        given = await _json_object(request)
        stored = _get(images, given.get("image"))
        prompt = {name: _numbers(given[name]) for name in ("point", "box") if name in given}

        def run() -> list[list[float]]:
            return outlines.of_mask(suggester.mask(stored.image, **prompt))

        async with semaphore:
            return {"polygons": await asyncio.to_thread(run)}

    return router


def _store(images: ImageStore, content: bytes, limits: Limits) -> StoredImage:
    image = open_image(content, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes)
    return images.put(image)


def _description(stored: StoredImage) -> dict[str, Any]:
    """An image as the canvas receives it; the URL is relative to the page."""
    size = {"width": stored.image.width, "height": stored.image.height}
    return {"id": stored.id, "url": f"page/images/{stored.id}", **size}


def _get(images: ImageStore, image_id: object) -> StoredImage:
    stored = images.get(image_id)
    if stored is None:
        raise ApiError(404, "the image has expired; choose it again", code="not_found")
    return stored


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


def _numbers(value: object) -> list[float]:
    if not isinstance(value, list) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value
    ):
        raise ApiError(422, "point and box must be lists of numbers", code="invalid_request")
    return [float(each) for each in value]
