"""Asking a server with the API: a controller, a single server, or anything that speaks as they do.

The server's address is the operator's and never a visitor's. Its errors are told in its own words,
its address is not.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from vip_llava.errors import ImageError, MissingExtraError, ServingError
from vip_llava.images import open_image
from vip_llava.serving.web.asking import Ask, Told
from vip_llava.serving.web.image_store import as_png
from vip_llava.serving.web.share import api_request

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("asking a server needs httpx: pip install 'vip-llava[web]'") from error

__all__ = ["HttpAsker"]

_GONE = "the server that answers can't be reached; try again in a while"


class HttpAsker:
    """A server with the API at `address`, for example http://127.0.0.1:8000."""

    def __init__(
        self, address: str, key: str | None = None, *, reload: bool = True, seconds: float = 300
    ) -> None:
        """key: an API key of that server. reload: ask for its models on every visit, not only once.

        seconds: for how long the server may say nothing. ServingError for what is no address.
        """
        if not address.startswith(("http://", "https://")):
            raise ServingError(f"{address}: give an address like http://127.0.0.1:8000")
        self._address = address.rstrip("/").removesuffix("/v1")
        self._fields = {"authorization": f"Bearer {key}"} if key else {}
        self._reload = reload
        self._seconds = seconds
        self._names: tuple[str, ...] = ()
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Open the client; the server may come later."""
        timeout = httpx.Timeout(self._seconds, connect=10)
        self._client = httpx.AsyncClient(
            base_url=self._address, headers=self._fields, timeout=timeout, trust_env=False
        )

    async def stop(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def models(self) -> Sequence[str]:
        """The server's models, or those of last time while it can't be reached; else ServingError."""
        if self._reload or not self._names:
            assert self._client is not None
            try:
                answer = await self._client.get("/v1/models", timeout=10)
                listed = answer.raise_for_status().json()["data"]
                self._names = tuple(str(each["id"]) for each in listed)
            except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
                if not self._names:
                    raise ServingError(_GONE) from error
        return self._names

    async def ask(self, ask: Ask) -> AsyncGenerator[str | Told]:
        """See `Asker.ask`."""
        assert self._client is not None
        began = time.perf_counter()
        address = None
        if ask.image is not None:
            address = "data:image/png;base64," + base64.b64encode(as_png(ask.image)).decode()
        body = {
            **api_request(ask, address),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_image": True,
        }
        heard = _Heard()
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise ServingError(_message(await answer.aread(), answer.status_code))
                async for line in answer.aiter_lines():
                    piece = heard.line(line)
                    if piece:
                        yield piece
        except httpx.HTTPError as error:
            raise ServingError(_GONE) from error
        yield heard.told(ask, time.perf_counter() - began)


class _Heard:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] = {}
        self.extension: Mapping[str, Any] = {}

    def line(self, line: str) -> str:
        """Take a line of the stream; gives the text in it. ServingError for what is no answer."""
        if not line.startswith("data:") or line[5:].strip() == "[DONE]":
            return ""
        try:
            event = json.loads(line[5:])
            error = event.get("error")
            if error:
                raise ServingError(str(error["message"]))
            self.usage = event.get("usage") or self.usage
            self.extension = event.get("vip_llava") or self.extension
            for choice in event.get("choices", ()):
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                piece = str(choice.get("delta", {}).get("content") or "")
                self.text += piece
                return piece
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServingError("the server's answer can't be read") from error
        return ""

    def told(self, ask: Ask, seconds: float) -> Told:
        """The whole answer; ServingError where it was cut off."""
        if self.finish_reason is None:
            raise ServingError("the answer was cut off; try again")
        images = self.extension.get("images") or [{}]
        address = images[0].get("image")
        try:
            image = open_image(address) if address else None
        except ImageError as error:
            raise ServingError("the server's image can't be read") from error
        return Told(
            # As a whole answer has it: without white space at both ends.
            text=self.text.strip(),
            image=image,
            regions=tuple(images[0].get("regions", ())),
            prompt=str(self.extension.get("prompt", "")),
            notes=tuple(map(str, self.extension.get("notes", ()))),
            finish_reason=self.finish_reason,
            seed=self.extension.get("seed"),
            prompt_tokens=int(self.usage.get("prompt_tokens", 0)),
            completion_tokens=int(self.usage.get("completion_tokens", 0)),
            seconds=seconds,
        )


def _message(body: bytes, status: int) -> str:
    """What a server says is wrong."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server that answers refused with {status}"
