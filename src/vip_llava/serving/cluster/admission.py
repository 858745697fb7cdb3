"""Who may become a worker of a controller: the signed request, the address, and the call back.

A worker counts only after it was asked, at the address it names, to prove that it knows the secret,
and has told there the models that it wants to be registered for. Dispatch and requests of clients are
elsewhere.
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
from vip_llava.serving.middleware.errors import Problem

__all__ = ["AddressList", "Beat", "Registration", "ask_status"]

STATUS_PATH = "/worker_get_status"
_STATUS_BYTES = 64 * 1024
_STATUS_SECONDS = 5.0

Address = Annotated[str, Field(max_length=300)]


class Registration(BaseModel):
    """The body of /register_worker, as the original's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker_name: Address
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None


class Beat(BaseModel):
    """The body of /receive_heart_beat and /unregister_worker."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker_name: Address
    queue_length: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class AddressList:
    """The networks and names that workers may listen at."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """allowed: networks ("10.1.0.0/16"), addresses, or host names that count as written.

        Raises ServingError for one that is none of these.
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
                    f"{entry!r} is no address, network or host name that workers could have; "
                    f"write it like 10.1.0.0/16 or worker-1.example.org"
                )
            self._names.add(name)

    def check(self, address: str) -> str:
        """The address as `scheme://host:port`; Problem 403 if no worker may listen there."""
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        plain = f"{parts.scheme}://{shown}:{port}"
        # Whatever else an address can hold (user, path, query, a zone) has no use here.
        if parts.scheme not in ("http", "https") or not port or plain != address.rstrip("/"):
            raise Problem(
                422,
                "worker_name has to be the worker's address, written http://host:port",
                code="invalid_request",
                param="worker_name",
            )
        if not self._allows(host):
            raise Problem(
                403,
                "no worker may listen at this address; the operator of the controller lists "
                "networks and names with --allow-worker",
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
        # ::ffff:10.0.0.1 is 10.0.0.1, whichever way it is written.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


async def ask_status(client: httpx.AsyncClient, address: str, secret: Secret) -> WorkerStatus:
    """What a worker says of itself, proved by the secret. Problem 502 or 403 if it does not."""
    challenge = secrets.token_hex(16)
    fields = {
        "authorization": f"Bearer {secret.service_key}",
        CHALLENGE_HEADER: challenge,
        "accept-encoding": "identity",
    }
    body = bytearray()
    try:
        async with (
            asyncio.timeout(_STATUS_SECONDS),
            client.stream("POST", address + STATUS_PATH, headers=fields) as response,
        ):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > _STATUS_BYTES:
                    break
    except (httpx.HTTPError, httpx.StreamError, TimeoutError):
        raise _unreachable() from None
    if not secret.proves(response.headers.get(PROOF_HEADER), challenge, bytes(body)):
        raise Problem(
            403,
            "who answers at the worker's address does not know the cluster's secret",
            code="worker_not_proved",
        )
    if response.status_code != 200:
        raise _unreachable()
    try:
        return WorkerStatus.model_validate_json(bytes(body))
    except ValidationError:
        raise Problem(502, "the worker's status is none", code="worker_failed") from None


def _unreachable() -> Problem:
    return Problem(
        502,
        "the controller can't reach the worker at the address that it names; "
        "give the worker the address that the controller sees (--worker-address)",
        code="worker_unreachable",
    )
