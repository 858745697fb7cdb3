"""Who may ask: the Host header, the page a browser asks from, and API keys.

Pure functions over header fields; no sockets and no state. Comparing keys takes the same time
whichever one is right and however much of one is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence

from pydantic import SecretStr

from vip_llava.serving.middleware.errors import Problem
from vip_llava.serving.settings import ServerSettings, is_loopback

__all__ = ["Access"]


class Access:
    """The checks of one server."""

    def __init__(self, settings: ServerSettings) -> None:
        self._hosts = frozenset(_allowed_hosts(settings))
        self._origins = frozenset(settings.origins)
        self._keys = _digests(settings.keys)

    def check_host(self, fields: Mapping[str, str]) -> None:
        """Problem 421 unless the request was meant for this server.

        A name that somebody else's DNS points here (rebinding) arrives with that name.
        """
        host = fields.get("host", "")
        if _host_of(host) not in self._hosts:
            raise Problem(
                421,
                "the Host header names another server; the operator lists names with --allow-host",
                code="wrong_host",
            )

    def check_origin(self, fields: Mapping[str, str]) -> None:
        """Problem 403 for a request that a browser sends for another site's page."""
        origin = fields.get("origin")
        same = origin is not None and origin.partition("://")[2] == fields.get("host")
        if origin in self._origins or same:
            return
        if origin is not None or fields.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Problem(
                403,
                "pages of other sites may not ask here; the operator lists them with --origin",
                code="wrong_origin",
            )

    def check_key(self, fields: Mapping[str, str]) -> str | None:
        """A short name of the client whose key it is, None where no keys are set; else Problem 401."""
        if not self._keys:
            return None
        scheme, _, given = fields.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "replace")).digest()
        # No early end: which key it is must not show in the time either.
        known = [hmac.compare_digest(digest, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise Problem(
                401,
                "an API key is needed: send the header Authorization: Bearer KEY"
                if not given
                else "this API key is not known",
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
    """The name of a Host header without its port, folded; an IPv6 address stays in brackets."""
    value = value.strip().lower()
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    if value.count(":") > 1:
        return f"[{value}]"
    return value.partition(":")[0].rstrip(".")
