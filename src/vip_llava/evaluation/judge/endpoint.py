"""A judge over HTTP: any server with OpenAI's chat completions. Retries what passes, stops at what doesn't.

It deliberately does not know what is judged.
"""

from __future__ import annotations

import ipaddress
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vip_llava.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    import httpx

__all__ = ["Endpoint", "Reply"]

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 60.0
_LARGEST = 1_000_000  # bytes of a reply; a judge says one number


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said, which model it says it is, and the tokens it counted (0: it counted none)."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """`endpoint.ask(prompt)`; may be used by several threads, and is closed by `with`.

    base_url: up to and with `/v1`, as OpenAI's clients take it. key: sent as a bearer, over https or to
    this machine only. tries: how often one question is sent at most. pause: the first wait in seconds;
    it doubles, unless the server says how long. Raises RequestError for an address that can't be, and
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
        # A redirect could carry the key elsewhere, and an environment's proxy could read it.
        self._client = httpx.Client(
            headers=headers, timeout=timeout, follow_redirects=False, trust_env=False
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed.set()
        self._client.close()

    def ask(self, prompt: str, temperature: float = 0.0) -> Reply:
        """One question, answered. Raises RequestError where waiting does not help."""
        import httpx

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self._max_tokens,
        }
        why = ""
        for number in range(self._tries):
            wait = self._pause * 2**number * (1 + 0.25 * random.random())
            try:
                response = self._client.post(f"{self.base_url}/chat/completions", json=body)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return _reply(response, self.model)
                why = _complaint(response)
                if response.status_code not in _PASSING:
                    raise RequestError(f"the judge at {self.base_url} refuses: {why}")
                wait = _asked_wait(response.headers.get("retry-after"), wait)
            if number + 1 < self._tries:
                wait = min(wait, _LONGEST_WAIT)
                if self._on_wait is not None:
                    self._on_wait(wait, why)
                if self._closed.wait(wait):
                    raise RequestError("the judge is not asked any more")
        raise RequestError(f"the judge at {self.base_url} failed {self._tries} times; last: {why}")


def checked_address(base_url: str, with_key: bool) -> str:
    """The address without a slash at its end. Raises RequestError for one that can't be."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"{base_url!r} is no address of a judge; write https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise RequestError(
            "the judge's address can't hold a password or a query; keys go elsewhere"
        )
    if with_key and parts.scheme == "http" and not _is_here(parts.hostname):
        raise RequestError(f"a key would be readable on its way to {base_url}; use https")
    return base_url.rstrip("/")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reply(response: httpx.Response, model: str) -> Reply:
    try:
        if len(response.content) > _LARGEST:
            raise ValueError("the reply is too long")
        value: Any = response.json()
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        return Reply(
            str(text or ""),
            str(value.get("model") or model),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise RequestError(f"the judge's reply is no chat completion: {error}") from None


def _complaint(response: httpx.Response) -> str:
    """ "401 (Incorrect API key ...)": the server's own words, cut."""
    try:
        said = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = response.text
    return f"{response.status_code} ({' '.join(str(said).split())[:200]})"


def _asked_wait(header: str | None, otherwise: float) -> float:
    """The wait that a server asks for: seconds or a date."""
    if header is None:
        return otherwise
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return otherwise
