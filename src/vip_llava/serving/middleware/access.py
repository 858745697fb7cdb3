"""Access checks on request headers: the Host header, the requesting web page, the API key.

It has no state and opens no sockets. The time of a key comparison depends neither on which key
matches nor on the length of a matching prefix.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence

from pydantic import SecretStr

from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.settings import ServerSettings, is_loopback

__all__ = ["AccessPolicy"]


class AccessPolicy:
    """The access checks of one server."""

    def __init__(self, settings: ServerSettings) -> None:
        self._hosts = frozenset(_allowed_hosts(settings))
        self._origins = frozenset(settings.origins)
        self._keys = _digests(settings.keys)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise ApiError 421 if the Host header names another server.

        This stops DNS rebinding: a foreign name that resolves to this machine arrives unchanged.
        """
        if _host_of(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                421,
                "the Host header names another server; allow more names with --allow-host",
                code="wrong_host",
            )

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Raise ApiError 403 if a browser sends the request for a page of another site."""
        origin = headers.get("origin")
        same = origin is not None and origin.partition("://")[2] == headers.get("host")
        if origin in self._origins or same:
            return
        if origin is not None or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(
                403,
                "requests from pages of other sites are refused; allow an origin with --origin",
                code="wrong_origin",
            )

    def check_key(self, headers: Mapping[str, str]) -> str | None:
        """A short id of the client that the key belongs to; None if no keys are configured.

        Raises:
            ApiError: 401 for a missing or unknown key.
        """
        if not self._keys:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "replace")).digest()
        # All keys are compared, so that the time does not tell which one matches.
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "unknown API key"
                if given
                else "an API key is required: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )
        return f"key:{digest.hex()[:16]}"


def _digests(keys: Iterable[SecretStr]) -> Sequence[bytes]:
    return tuple(hashlib.sha256(key.get_secret_value().encode()).digest() for key in keys)


def _allowed_hosts(settings: ServerSettings) -> Iterable[str]:
    yield from ("localhost", "127.0.0.1", "[::1]")
    yield from (_host_of(name) for name in settings.hosts)
    if not is_loopback(settings.host):
        yield _host_of(settings.host)


def _host_of(value: str) -> str:
    """The lower-case name in a Host header without its port; an IPv6 address keeps its brackets."""
    value = value.strip().lower()
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    if value.count(":") > 1:
        return f"[{value}]"
    return value.partition(":")[0].rstrip(".")
