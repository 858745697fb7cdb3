"""Admission of workers: the form of a registration, the address allow-list, the call back.

A worker is admitted only after it proved, at the address it names, that it knows the secret, and
reported the models that it registers. This module does not know dispatch or client requests.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vip_llava.errors import ServingError
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.signing import CHALLENGE_HEADER, PROOF_HEADER, Secret
from vip_llava.serving.middleware.errors import ApiError

__all__ = ["STATUS_PATH", "AddressAllowList", "Heartbeat", "Registration", "fetch_worker_status"]

STATUS_PATH = "/worker_get_status"
_MAX_STATUS_BYTES = 64 * 1024
_STATUS_TIMEOUT = 5.0

Address = Annotated[str, Field(max_length=300)]


class Registration(BaseModel):
    """The body of /register_worker, as in the original."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker_name: Address
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None


class Heartbeat(BaseModel):
    """The body of /receive_heart_beat and /unregister_worker."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker_name: Address
    queue_length: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class AddressAllowList:
    """The networks and host names where workers may listen."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """
        Args:
            allowed: networks ("10.1.0.0/16"), addresses, or host names, which are not resolved.

        Raises:
            ServingError: an entry that is none of these.
        """
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: set[str] = set()
        for entry in allowed:
            try:
                self._networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError:
                name = entry.strip().rstrip(".").lower()
            plain = name.replace("-", "").replace(".", "").replace("_", "")
            if not plain.isalnum() or not name.isascii() or name.replace(".", "").isdigit():
                raise ServingError(
                    f"{entry!r} must be a network, an address or a host name, like 10.1.0.0/16 or "
                    "worker-1.example.org"
                )
            self._names.add(name)

    def check(self, address: str) -> str:
        """The address as `scheme://host:port`; ApiError 403 if it is not allowed."""
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        plain = f"{parts.scheme}://{shown}:{port}"
        # Any other part of a URL (user, path, query, zone) is refused.
        if parts.scheme not in ("http", "https") or not port or plain != address.rstrip("/"):
            raise ApiError(
                422,
                "worker_name must be the URL of the worker, http://host:port",
                code="invalid_request",
                param="worker_name",
            )
        if not self._allows(host):
            raise ApiError(
                403,
                "workers at this address are not allowed; the operator of the controller allows "
                "networks and host names with --allow-worker",
                code="address_not_allowed",
                param="worker_name",
            )
        return plain

    def _allows(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host in self._names
        if getattr(address, "scope_id", None):
            return False
        # ::ffff:10.0.0.1 is 10.0.0.1.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


async def fetch_worker_status(
    client: httpx.AsyncClient, address: str, secret: Secret
) -> WorkerStatus:
    """The status of a worker, which must prove that it knows the secret.

    Raises:
        ApiError: 502 if it can't be reached or its status is malformed, 403 without a valid proof.
    """
    challenge = secrets.token_hex(16)
    headers = {
        "authorization": f"Bearer {secret.service_key}",
        CHALLENGE_HEADER: challenge,
        "accept-encoding": "identity",
    }
    body = bytearray()
    try:
        async with (
            asyncio.timeout(_STATUS_TIMEOUT),
            client.stream("POST", address + STATUS_PATH, headers=headers) as response,
        ):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _MAX_STATUS_BYTES:
                    break
    except (httpx.HTTPError, httpx.StreamError, TimeoutError):
        raise _unreachable() from None
    if not secret.proves(response.headers.get(PROOF_HEADER), challenge, bytes(body)):
        raise ApiError(
            403,
            "the server at the worker's address does not know the cluster's secret",
            code="worker_not_proved",
        )
    if response.status_code != 200:
        raise _unreachable()
    try:
        return WorkerStatus.model_validate_json(bytes(body))
    except ValidationError:
        raise ApiError(502, "malformed worker status", code="worker_failed") from None


def _unreachable() -> ApiError:
    return ApiError(
        502,
        "the controller can't reach the worker at its address; set the address that the "
        "controller can reach with --worker-address",
        code="worker_unreachable",
    )
