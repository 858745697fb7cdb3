"""A judge over HTTP: any server with OpenAI's chat completions.

Temporary failures (rate limits, server errors, broken connections) are retried; a refusal is an
error at once. It does not know what is judged.
"""

from __future__ import annotations

import ipaddress
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vip_llava.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    import httpx

__all__ = ["JudgeEndpoint", "JudgeReply", "checked_address"]

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MAX_WAIT = 60.0
_MAX_BYTES = 1_000_000  # of a reply, which is one number


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """A judge's text, the model that it reports, and the tokens that it counted, 0 if none."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int


class JudgeEndpoint:
    """A client of one judge, for use in a `with` statement and by several threads.

    base_url: up to and including `/v1`, as OpenAI's clients take it. key: sent as a bearer token,
    over https or to this machine only. tries: how often a question is sent at most. pause: the
    first wait in seconds; it doubles with each try, unless the server gives a wait. on_wait: called
    with seconds and reason before each wait. Raises RequestError for an invalid address, and
    MissingExtraError without httpx.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        tries: int = 6,
        pause: float = 1.0,
        max_tokens: int = 3,
        on_wait: Callable[[float, str], None] | None = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("a judge needs httpx: pip install 'vip-llava[eval]'") from error
        self.base_url, self.model = checked_address(base_url, key is not None), model
        self._tries, self._pause, self._max_tokens = tries, pause, max_tokens
        self._on_wait = on_wait
        self._closed = threading.Event()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A redirect could send the key elsewhere, and a proxy of the environment could read it.
        self._client = httpx.Client(
            headers=headers, timeout=timeout, follow_redirects=False, trust_env=False
        )

    def __enter__(self) -> JudgeEndpoint:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed.set()
        self._client.close()

    def ask(self, prompt: str, temperature: float = 0.0) -> JudgeReply:
        """The reply to one question. Raises RequestError if retrying does not help."""
        import httpx

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self._max_tokens,
        }
        reason = ""
        for number in range(self._tries):
            wait = self._pause * 2**number * (1 + 0.25 * random.random())
            try:
                response = self._client.post(f"{self.base_url}/chat/completions", json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return _parse(response, self.model)
                reason = _error_message(response)
                if response.status_code not in _RETRIED:
                    raise RequestError(f"the judge at {self.base_url} refused: {reason}")
                wait = _retry_after(response.headers.get("retry-after"), wait)
            if number + 1 < self._tries:
                wait = min(wait, _MAX_WAIT)
                if self._on_wait is not None:
                    self._on_wait(wait, reason)
                if self._closed.wait(wait):
                    raise RequestError("the connection to the judge was closed")
        raise RequestError(
            f"the judge at {self.base_url} failed {self._tries} times; last: {reason}"
        )


def checked_address(base_url: str, with_key: bool) -> str:
    """The address without a trailing slash. Raises RequestError for an invalid one."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"{base_url!r} is not an http address; write https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise RequestError(
            "the judge's address must not hold a password or a query; set the key in the environment"
        )
    if with_key and parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise RequestError(f"a key must not be sent unencrypted to {base_url}; use https")
    return base_url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(response: httpx.Response, model: str) -> JudgeReply:
    try:
        if len(response.content) > _MAX_BYTES:
            raise ValueError("it is too long")
        value: Any = response.json()
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        return JudgeReply(
            str(text or ""),
            str(value.get("model") or model),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise RequestError(f"the judge's reply is not a chat completion: {error}") from None


def _error_message(response: httpx.Response) -> str:
    """ "401 (Incorrect API key ...)": the status and the server's message, shortened."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{response.status_code} ({' '.join(str(message).split())[:200]})"


def _retry_after(header: str | None, default: float) -> float:
    """The wait in a `Retry-After` header; the default without one, or for a date."""
    try:
        return max(0.0, float(header or default))
    except ValueError:
        return default
