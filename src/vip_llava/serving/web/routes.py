"""The page's own routes: images in and out, outlines, suggested areas, and the scripts.

Images come as the bytes of a file and get a name from the server; a path or an address from a
browser means nothing here. Errors have the standard shape of the API.
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
from vip_llava.serving.middleware.errors import Problem
from vip_llava.serving.settings import Limits
from vip_llava.serving.web import outlines
from vip_llava.serving.web.image_store import Held, Shelf, as_png
from vip_llava.serving.web.suggest import Suggester

__all__ = ["EXAMPLES", "STATIC", "page_routes"]

STATIC = Path(__file__).with_name("static")
#: Photos to begin with: name -> file under `static/photos`.
EXAMPLES: Mapping[str, str] = {"a cat": "cat.jpg", "a cup of coffee": "coffee.jpg"}
_KINDS = {".js": "text/javascript", ".css": "text/css", ".jpg": "image/jpeg"}


def page_routes(shelf: Shelf, suggester: Suggester | None, limits: Limits) -> APIRouter:
    """The routes under /page; `suggester` None: areas are not suggested."""
    router = APIRouter(prefix="/page", include_in_schema=False)
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*.*")}
    busy = asyncio.Semaphore(limits.preparing)  # opening and searching take a core each

    @router.get("/static/{name:path}")
    async def static(name: str) -> Response:
        path = files.get(name)
        if path is None or path.suffix not in _KINDS:
            raise Problem(404, "there is no such file of the page", code="not_found")
        return FileResponse(path, media_type=_KINDS[path.suffix])

    @router.post("/images")
    async def put(request: Request) -> dict[str, Any]:
        content = await request.body()
        async with busy:
            return _told(await asyncio.to_thread(_opened, shelf, content, limits))

    @router.post("/examples/{number}")
    async def example(number: int) -> dict[str, Any]:
        if not 0 <= number < len(EXAMPLES):
            raise Problem(404, "there is no such example", code="not_found")
        content = (STATIC / "photos" / list(EXAMPLES.values())[number]).read_bytes()
        return _told(await asyncio.to_thread(_opened, shelf, content, limits))

    @router.get("/images/{name}")
    async def get(name: str, exact: bool = False) -> Response:
        """`exact`: the pixels themselves, also where large images are shown with small losses."""
        held = _found(shelf, name)
        headers = {"cache-control": "private, max-age=3600, immutable"}
        if exact and held.media_type != "image/png":
            content = await asyncio.to_thread(as_png, held.image)
            return Response(content, media_type="image/png", headers=headers)
        return Response(held.content, media_type=held.media_type, headers=headers)

    @router.post("/outline")
    async def outline(request: Request) -> dict[str, Any]:
        asked = await _object(request)
        return {"polygons": await asyncio.to_thread(outlines.of_loop, asked.get("points"))}

    @router.post("/suggest")
    async def suggest(request: Request) -> dict[str, Any]:
        if suggester is None:
            raise Problem(501, "this server suggests no areas", code="not_installed")
        asked = await _object(request)
        held = _found(shelf, asked.get("image"))
        place = {name: _numbers(asked[name]) for name in ("point", "box") if name in asked}

        def look() -> list[list[float]]:
            return outlines.of_mask(suggester.mask(held.image, **place))

        async with busy:
            return {"polygons": await asyncio.to_thread(look)}

    return router


def _opened(shelf: Shelf, content: bytes, limits: Limits) -> Held:
    image = open_image(content, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes)
    return shelf.put(image)


def _told(held: Held) -> dict[str, Any]:
    """What the canvas is told of an image. The address is relative to the page."""
    size = {"width": held.image.width, "height": held.image.height}
    return {"id": held.id, "url": f"page/images/{held.id}", **size}


def _found(shelf: Shelf, name: object) -> Held:
    held = shelf.get(name)
    if held is None:
        raise Problem(404, "the image is not here any more; choose it again", code="not_found")
    return held


async def _object(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Problem(400, "the body is no JSON object", code="invalid_json")
    return value


def _numbers(value: object) -> list[float]:
    if not isinstance(value, list) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value
    ):
        raise Problem(422, "a place is a list of numbers", code="invalid_request")
    return [float(each) for each in value]
