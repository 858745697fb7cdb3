"""A server on loopback with tiny models, and images to send to it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from vip_llava import Assistant, load
from vip_llava.serving.api.app import create_app
from vip_llava.serving.middleware.server import background
from vip_llava.serving.settings import make_settings


@pytest.fixture(scope="session")
def tiny(tiny_model_folder: Path) -> Assistant:
    """The tiny model of `tiny_model_folder`, with deterministic answers."""
    return load(tiny_model_folder)


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A generated photo of 96 x 64 pixels."""
    image = Image.new("RGB", (96, 64), (120, 140, 160))
    image.paste((200, 60, 40), (10, 10, 50, 40))
    return image


@pytest.fixture(scope="session")
def photo_file(photo: Image.Image) -> bytes:
    """The photo as a PNG file."""
    file = io.BytesIO()
    photo.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def photo_address(photo_file: bytes) -> str:
    """The photo as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(photo_file).decode()


@dataclass
class Api:
    """A running server and its client."""

    app: FastAPI
    address: str
    client: httpx.Client

    def ask(self, *parts: Any, **keys: Any) -> httpx.Response:
        """Send one user message of these parts; strings are text parts."""
        content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
        message = {"role": "user", "content": content}
        body = {"model": "tiny", "messages": [message], "max_tokens": 5, **keys}
        return self.client.post("/v1/chat/completions", json=body)

    def told(self, *parts: Any, **keys: Any) -> dict[str, Any]:
        """The body of a successful response."""
        answer = self.ask(*parts, **keys)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def refused(self, *parts: Any, **keys: Any) -> tuple[int, str, str | None]:
        """Status, code and param of an error response."""
        answer = self.ask(*parts, **keys)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return answer.status_code, error["code"], error["param"]


def shown(address: str, *regions: dict[str, Any]) -> dict[str, Any]:
    """An image part."""
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": address}}
    return {**part, "regions": list(regions)} if regions else part


@pytest.fixture
def serve(tiny: Assistant) -> Iterator[Callable[..., Api]]:
    """`serve(limits={...}, assistants={...})` starts a server with the tiny model."""
    with ExitStack() as stack:

        def start(
            assistants: dict[str, Assistant] | None = None,
            make: dict[str, Any] | None = None,
            **values: Any,
        ) -> Api:
            values.setdefault("limits", {}).setdefault("rate", 0)
            settings = make_settings(port=0, **values)
            given = {"tiny": tiny} if assistants is None else assistants
            app = create_app(given, settings, **(make or {}))
            address = stack.enter_context(background(app, settings))
            client = stack.enter_context(httpx.Client(base_url=address, timeout=30))
            return Api(app, address, client)

        yield start


@pytest.fixture(scope="module")
def api(tiny: Assistant) -> Iterator[Api]:
    """One server with the tiny model for all tests of a module."""
    settings = make_settings(port=0, limits={"rate": 0})
    app = create_app({"tiny": tiny}, settings)
    with (
        background(app, settings) as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield Api(app, address, client)
