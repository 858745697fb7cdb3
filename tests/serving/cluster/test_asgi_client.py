"""Requests to an application in the same process: responses, failures, disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from fastapi import Request
from starlette.responses import StreamingResponse

from vip_llava.serving.cluster.asgi_client import ResponseHead, call_app
from vip_llava.serving.middleware.app_factory import create_base_app
from vip_llava.serving.settings import ServerSettings


class Told:
    """What the application observed."""

    def __init__(self) -> None:
        self.left = asyncio.Event()


def application(told: Told) -> Any:
    app = create_base_app(ServerSettings(), title="test")

    @app.post("/echo")
    async def echo(request: Request) -> Any:
        return {"body": await request.json(), "id": request.headers["x-request-id"]}

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> Any:
            try:
                for number in range(1000):
                    yield f"{number} "
                    await asyncio.sleep(0.01)
            finally:
                told.left.set()

        return StreamingResponse(pieces())

    @app.post("/break")
    async def broken() -> StreamingResponse:
        async def pieces() -> Any:
            yield "begun"
            raise RuntimeError("a fault of the test")

        return StreamingResponse(pieces())

    return app


async def taken(path: str, body: bytes = b"{}", most: int = 100, **fields: str) -> tuple[Any, ...]:
    told = Told()
    found = []
    asked = call_app(application(told), path, body, {"x-request-id": "abc", **fields})
    async with contextlib.aclosing(asked) as answer:
        async for piece in answer:
            found.append(piece)
            if len(found) == most:
                break
    return told, *found


def test_a_request_and_its_response() -> None:
    content = {"content-type": "application/json"}
    _, head, *pieces = asyncio.run(taken("/echo", b'{"a": 1}', host="elsewhere", **content))
    assert isinstance(head, ResponseHead) and head.status == 200
    assert head.headers["content-type"] == "application/json"
    assert json.loads(b"".join(pieces)) == {"body": {"a": 1}, "id": "abc"}


def test_refusals_of_the_gate_are_responses() -> None:
    _, head, *pieces = asyncio.run(taken("/none"))
    assert head.status == 404
    assert json.loads(b"".join(pieces))["error"]["code"] == "not_found"


def test_closing_the_response_ends_the_work() -> None:
    async def leave() -> None:
        told, head, first, second = await taken("/stream", most=3)
        assert (head.status, first, second) == (200, b"0 ", b"1 ")
        assert told.left.is_set()

    asyncio.run(asyncio.wait_for(leave(), 4))


def test_an_incomplete_response_is_an_error() -> None:
    with pytest.raises(ConnectionAbortedError):
        asyncio.run(taken("/break"))
