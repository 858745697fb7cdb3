"""What a server logs, and what it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

KEY = "a-key-of-enough-characters"
QUESTION = "Where did I bury the treasure?"


def everything(api: Any, address: str) -> None:
    """Send requests of all kinds, answered and refused, with recognizable content."""
    headers = {"authorization": f"Bearer {KEY}"}
    api.client.headers.update(headers)
    image = {"type": "image_url", "image_url": {"url": address}}
    api.told(image, QUESTION)
    api.ask(image, QUESTION, stream=True)
    api.ask(image, QUESTION + " <region:9>")
    api.ask(image, QUESTION, temperature="treasure")
    api.ask(QUESTION, model="treasure-island")
    api.ask({"type": "image_url", "image_url": {"url": "https://treasure.example/map.png"}}, "x")
    api.client.get("/v1/models/treasure?map=treasure")
    api.client.get("/treasure", headers={"authorization": "Bearer treasure", "x-request-id": "r-1"})
    api.client.request("TREASURE", "/v1/models")


def test_the_log_has_requests_and_no_content(
    serve: Callable[..., Any], photo_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vip_llava"):
        api = serve(keys=[KEY])
        everything(api, photo_address)
    text = caplog.text
    assert text.count("POST /v1/chat/completions 200") == 2
    assert "POST /v1/chat/completions 422" in text
    assert "id=r-1 " in text
    for secret in ("treasure", "TREASURE", KEY, photo_address[22:60], "127.0.0.1", "bury"):
        assert secret not in text


def test_content_is_logged_if_configured(
    serve: Callable[..., Any], photo_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vip_llava"):
        api = serve(keys=[KEY], log_content=True)
        everything(api, photo_address)
    assert caplog.text.count(QUESTION) >= 2
    assert "answer: " in caplog.text
    for secret in (KEY, photo_address[22:60]):
        assert secret not in caplog.text
