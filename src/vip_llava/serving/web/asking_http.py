"""`HttpClient`: sends the page's questions to a server with the API - a controller, for example.

The operator sets the server's URL; a visitor never does. Visitors see the server's error messages,
but not its URL.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from vip_llava.errors import ImageError, MissingExtraError, ServingError
from vip_llava.images import open_image
from vip_llava.serving.api.replies import image_data_url
from vip_llava.serving.web.asking import Question, Reply
from vip_llava.serving.web.share import api_request

try:
    import httpx
except ImportError as error:
    raise MissingExtraError(
        "asking a server needs the library httpx: pip install 'vip-llava[web]'"
    ) from error

__all__ = ["HttpClient"]

_UNREACHABLE = "the model server can't be reached; try again later"


class HttpClient:
    """A server with the API at `url`, for example http://127.0.0.1:8000."""

    def __init__(
        self, url: str, key: str | None = None, *, reload: bool = True, seconds: float = 300
    ) -> None:
        """
        Args:
            key: an API key of that server.
            reload: read its list of models on every visit instead of once.
            seconds: read timeout.

        Raises:
            ServingError: an invalid URL.
        """
        if not url.startswith(("http://", "https://")):
            raise ServingError(f"{url}: must be a URL like http://127.0.0.1:8000")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._reload = reload
        self._seconds = seconds
        self._names: tuple[str, ...] = ()
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Create the connection pool; the server may start later."""
        timeout = httpx.Timeout(self._seconds, connect=10)
        self._client = httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=timeout, trust_env=False
        )

    async def stop(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def models(self) -> Sequence[str]:
        """The server's models, or the last known ones while it is unreachable; else ServingError."""
        if self._reload or not self._names:
            assert self._client is not None
            try:
                answer = await self._client.get("/v1/models", timeout=10)
                listed = answer.raise_for_status().json()["data"]
                self._names = tuple(str(each["id"]) for each in listed)
            except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
                if not self._names:
                    raise ServingError(_UNREACHABLE) from error
        return self._names

    async def ask(self, question: Question) -> AsyncGenerator[str | Reply]:
        """See `ChatClient.ask`."""
        assert self._client is not None
        started = time.perf_counter()
        image_url = image_data_url(question.image) if question.image is not None else None
        body = {
            **api_request(question, image_url),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_image": True,
        }
        parser = _StreamParser()
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise ServingError(_message(await answer.aread(), answer.status_code))
                async for line in answer.aiter_lines():
                    text = parser.feed(line)
                    if text:
                        yield text
        except httpx.HTTPError as error:
            raise ServingError(_UNREACHABLE) from error
        yield parser.reply(time.perf_counter() - started)


class _StreamParser:
    """Collects a streamed answer."""

    def __init__(self) -> None:
        self._text = ""
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._extension: Mapping[str, Any] = {}

    def feed(self, line: str) -> str:
        """Parse a line of the stream; returns its text. ServingError if it is malformed."""
        if not line.startswith("data:") or line[5:].strip() == "[DONE]":
            return ""
        try:
            event = json.loads(line[5:])
            error = event.get("error")
            if error:
                raise ServingError(str(error["message"]))
            self._usage = event.get("usage") or self._usage
            self._extension = event.get("vip_llava") or self._extension
            for choice in event.get("choices", ()):
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                text = str(choice.get("delta", {}).get("content") or "")
                self._text += text
                return text
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServingError("the model server sent a malformed answer") from error
        return ""

    def reply(self, seconds: float) -> Reply:
        """The complete answer; ServingError if the stream ended early."""
        if self._finish_reason is None:
            raise ServingError("the answer was cut off; try again")
        images = self._extension.get("images") or [{}]
        url = images[0].get("image")
        try:
            image = open_image(url) if url else None
        except ImageError as error:
            raise ServingError("the model server sent an invalid image") from error
        return Reply(
            text=self._text.strip(),  # as in an answer that is not streamed
            image=image,
            regions=tuple(images[0].get("regions", ())),
            prompt=str(self._extension.get("prompt", "")),
            notes=tuple(map(str, self._extension.get("notes", ()))),
            finish_reason=self._finish_reason,
            seed=self._extension.get("seed"),
            prompt_tokens=int(self._usage.get("prompt_tokens", 0)),
            completion_tokens=int(self._usage.get("completion_tokens", 0)),
            seconds=seconds,
        )


def _message(body: bytes, status: int) -> str:
    """The message of an error response."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the model server refused with status {status}"
