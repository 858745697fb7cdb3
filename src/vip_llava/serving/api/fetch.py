"""`ImageFetcher`: fetches an image URL of a request, protected against SSRF.

It refuses everything unless the operator allows hosts. An allowed host is resolved once, all its
addresses must be public, and the connection goes to the checked address, with the certificate
verified for the host name; each redirect repeats all of this. Error messages contain no address.
It does not know images: it returns bytes, which `images.open_image` validates.
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

from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.middleware.hosts import is_numeric_host, normalize_host, normalize_host_entry
from vip_llava.serving.settings import Limits

__all__ = ["ImageFetcher", "is_public", "parse_url"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# Stricter than the standard: a URL that two parsers could read differently is refused.
_URL = re.compile(
    r"https://(?P<host>[^\x00-\x20/?#@:\\\[\]%]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>/[!$&-;=?-Z_a-z~%]*)?",
    re.IGNORECASE,
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class _Target:
    """A checked URL: host as in the allow-list, port, path with query."""

    host: str
    port: int
    path: str

    @property
    def name(self) -> str:
        return self.host if self.port == 443 else f"{self.host}:{self.port}"


class ImageFetcher:
    """Fetches images for one server."""

    def __init__(
        self,
        hosts: Sequence[str],
        limits: Limits,
        *,
        resolve: Resolve | None = None,
        allowed: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            hosts: allowed host names, with a port if it is not 443; none refuses every URL.
            resolve, allowed, tls: replaced in tests: name resolution, the check of IP addresses,
                and the trusted certificates.
        """
        self._hosts = frozenset(normalize_host_entry(host) for host in hosts)
        self._limits = limits
        self._resolve = resolve or _resolved
        self._allowed = allowed or is_public
        self._tls = tls or ssl.create_default_context()

    async def fetch(self, url: str) -> bytes:
        """The body behind an https URL.

        Raises:
            ApiError: 422 if the URL is refused, 502 if it could not be fetched. The message
                contains no address, so that responses reveal nothing about the network.
        """
        if not self._hosts:
            raise _refused("this server fetches no images: send a data: URL or an upload")
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                return await self._follow(url)
        except (TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL, ssl.SSLError):
            raise _failed("the image could not be fetched") from None

    async def _follow(self, url: str) -> bytes:
        for _ in range(self._limits.fetch_redirects + 1):
            found = await self._get(self._target(url))
            if isinstance(found, bytes):
                return found
            url = found
        raise _failed(f"more than {self._limits.fetch_redirects} redirects (fetch_redirects)")

    def _target(self, url: str) -> _Target:
        target = parse_url(url)
        if target.name not in self._hosts:
            raise _refused("this host is not allowed; the operator allows hosts with --fetch-host")
        return target

    async def _get(self, target: _Target) -> bytes | str:
        """One request: the body, or the URL of a redirect."""
        found = await self._resolve(target.host, target.port)
        # All of them: a name with a public and a private address is an attack.
        if not found or not all(self._allowed(one) for one in found):
            raise _refused("this host does not resolve to public addresses")
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
            return _redirect_url(target, answer.headers.get("location", ""))
        if answer.status_code != 200:
            raise _failed("the host did not answer with an image")
        # It was not requested, and a few compressed bytes could expand without bound.
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise _failed("the host sent a content encoding, which is not accepted")
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


def parse_url(url: str) -> _Target:
    """Parse an https URL; ApiError 422 for another scheme or an ambiguous URL.

    Refused are users and passwords, backslashes, blanks and control characters, brackets, escapes
    in the host, and numeric hosts in any notation.
    """
    if len(url) > 2000:
        raise _refused("an image URL must have at most 2,000 characters")
    found = _URL.fullmatch(url)
    if not found:
        raise _refused("an image URL must be https://host/path, without user, password or fragment")
    host = normalize_host(found["host"])
    port = int(found["port"] or 443)
    if not host or is_numeric_host(host) or not 0 < port < 65536:
        raise _refused("an image URL must have a host name, not a number")
    return _Target(host, port, found["rest"] or "/")


def is_public(address: str) -> bool:
    """Whether an IP address is public, including an IPv4 address embedded in an IPv6 one."""
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
        # The deprecated form ::1.2.3.4, which some systems still read as the IPv4 address.
        if int(found) < 2**32:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _redirect_url(target: _Target, location: str) -> str:
    """The URL of a redirect, absolute or a path on the same host. The caller checks it."""
    if location.startswith("/") and not location.startswith(("//", "/\\")):
        return f"https://{target.name}{location}"
    return location


async def _resolved(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


def _refused(text: str) -> ApiError:
    return ApiError(422, text, code="address_refused")


def _failed(text: str) -> ApiError:
    return ApiError(502, text, code="fetch_failed")


def _too_large(most: int) -> ApiError:
    return ApiError(
        422, f"the image has more than {most:,} bytes (image_bytes)", code="image_too_large"
    )
