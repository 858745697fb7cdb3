"""The only door through which an image named in a request is fetched from a network.

Closed unless the operator lists hosts. A listed host is resolved once, every address of it has to
be a public one, and the very address that was checked is dialled, with the certificate checked
for the host's name; each redirect goes the same way anew. What goes wrong is told without any
address. The door knows nothing of images: it gives bytes, which the one safe opener judges.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx

from vip_llava.serving.middleware.errors import Problem
from vip_llava.serving.middleware.hosts import folded, folded_entry, is_number
from vip_llava.serving.settings import Limits

__all__ = ["Fetcher", "is_public", "parse_address"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# Stricter than any standard on purpose: what two parsers could read in two ways is refused.
_ADDRESS = re.compile(
    r"https://(?P<host>[^\x00-\x20/?#@:\\\[\]%]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>/[!$&-;=?-Z_a-z~%]*)?",
    re.IGNORECASE,
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class _Target:
    """A checked address: host as the allow-list writes it, port, path with query."""

    host: str
    port: int
    path: str

    @property
    def name(self) -> str:
        return self.host if self.port == 443 else f"{self.host}:{self.port}"


class Fetcher:
    """Fetches for one server. Without hosts it refuses everything."""

    def __init__(
        self,
        hosts: Sequence[str],
        limits: Limits,
        *,
        resolve: Resolve | None = None,
        allowed: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """hosts: names, with a port where it is not 443. The others are for tests: how a name is
        resolved, which addresses may be dialled, and whose certificates count.
        """
        self._hosts = frozenset(folded_entry(host) for host in hosts)
        self._limits = limits
        self._resolve = resolve or _resolved
        self._allowed = allowed or is_public
        self._tls = tls or ssl.create_default_context()

    async def fetch(self, address: str) -> bytes:
        """The body behind an https address.

        Raises Problem 422 for what is refused, 502 for what could not be fetched; neither tells
        an address, so that nobody learns about a network from the answers.
        """
        if not self._hosts:
            raise _refused("images are not fetched here: send a data: address or an upload")
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                return await self._follow(address)
        except (TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL, ssl.SSLError):
            raise _failed("the image could not be fetched") from None

    async def _follow(self, address: str) -> bytes:
        for _ in range(self._limits.fetch_redirects + 1):
            found = await self._get(self._target(address))
            if isinstance(found, bytes):
                return found
            address = found
        raise _failed(f"more than {self._limits.fetch_redirects} redirects (fetch_redirects)")

    def _target(self, address: str) -> _Target:
        target = parse_address(address)
        if target.name not in self._hosts:
            raise _refused("images are not fetched from this host; the operator lists the hosts")
        return target

    async def _get(self, target: _Target) -> bytes | str:
        """One request: the body, or where it is redirected to."""
        found = await self._resolve(target.host, target.port)
        # All of them: a name with a public and a private address is an attempt.
        if not found or not all(self._allowed(one) for one in found):
            raise _refused("this host is not one that images are fetched from")
        ip = f"[{found[0]}]" if ":" in found[0] else found[0]
        client = httpx.AsyncClient(
            verify=self._tls, trust_env=False, follow_redirects=False, timeout=None
        )
        request = client.build_request(
            "GET",
            f"https://{ip}:{target.port}{target.path}",
            headers={"host": target.name, "accept": "image/*", "accept-encoding": "identity"},
            extensions={"sni_hostname": target.host},
        )
        async with client:
            answer = await client.send(request, stream=True)
            try:
                return await self._read(answer, target)
            finally:
                await answer.aclose()

    async def _read(self, answer: httpx.Response, target: _Target) -> bytes | str:
        if answer.status_code in _REDIRECTS:
            return _joined(target, answer.headers.get("location", ""))
        if answer.status_code != 200:
            raise _failed("the host did not answer with an image")
        # Not asked for, and a few bytes of it could become very many.
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise _failed("the host sent the image compressed, which is not accepted")
        most = self._limits.image_bytes
        declared = answer.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            raise _too_large(most)
        body = bytearray()
        async for part in answer.aiter_raw():
            body += part
            if len(body) > most:
                raise _too_large(most)
        return bytes(body)


def parse_address(address: str) -> _Target:
    """An https address taken apart; Problem 422 for every other scheme and for every trick.

    Refused: users and passwords, backslashes, blanks and control characters, brackets, escapes in
    the host, and hosts that are numbers in any notation.
    """
    if len(address) > 2000:
        raise _refused("an address has at most 2,000 characters")
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise _refused(
            "an image's address is https://host/path, without user, password or fragment"
        )
    host = folded(found["host"])
    port = int(found["port"] or 443)
    if not host or is_number(host) or not 0 < port < 65536:
        raise _refused("an image's address has the name of a host, not a number")
    return _Target(host, port, found["rest"] or "/")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also behind what wraps it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None:
            return False
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if any(found in network for network in _NAT64):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        # The old form ::1.2.3.4, which some systems still take for the IPv4 address.
        if int(found) < 2**32:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _joined(target: _Target, location: str) -> str:
    """Where a redirect leads: a whole address, or a path of the same host. Checked by the caller."""
    if location.startswith("/") and not location.startswith(("//", "/\\")):
        return f"https://{target.name}{location}"
    return location


async def _resolved(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


def _refused(text: str) -> Problem:
    return Problem(422, text, code="address_refused")


def _failed(text: str) -> Problem:
    return Problem(502, text, code="fetch_failed")


def _too_large(most: int) -> Problem:
    return Problem(
        422, f"the image has more than {most:,} bytes (image_bytes)", code="image_too_large"
    )
