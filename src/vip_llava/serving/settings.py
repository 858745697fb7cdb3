"""`ServerSettings` and `Limits`: what an operator can configure, with every default.

Frozen values: nothing here opens a socket or reads a file. The descriptions are the help texts of
the commands and of docs/serving.md.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from vip_llava.errors import ServingError
from vip_llava.serving.middleware.hosts import normalize_host_entry

__all__ = ["Limits", "ServerSettings", "is_loopback", "make_settings"]

_MIB = 2**20

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """Limits of one request, of one client and of the whole server; excess is refused."""

    body_bytes: Count = Field(default=32 * _MIB, description="Bytes of a request body.")
    bodies_bytes: Count = Field(
        default=256 * _MIB, description="Bytes of all request bodies in memory."
    )
    body_seconds: Seconds = Field(
        default=30, description="Seconds in which a request body must arrive."
    )
    header_seconds: Seconds = Field(
        default=15,
        description="Seconds in which request headers must arrive; also the keep-alive time.",
    )
    write_seconds: Seconds = Field(
        default=30, description="Seconds that a client may leave sent data unread."
    )
    connections: Count = Field(default=1000, description="Open connections.")
    client_connections: Count = Field(default=256, description="Open connections of one address.")
    rate: float = Field(
        default=600,
        ge=0,
        allow_inf_nan=False,
        description="Requests a minute of one client; 0: no limit.",
    )
    burst: Count = Field(default=120, description="Requests that one client may send at once.")
    messages: Count = Field(default=64, description="Messages of a conversation.")
    text_chars: Count = Field(default=100_000, description="Characters of all texts of a request.")
    images: Count = Field(default=8, description="Images of a request.")
    image_bytes: Count = Field(default=16 * _MIB, description="Bytes of one image file.")
    image_pixels: Count = Field(default=32_000_000, description="Pixels of one image.")
    request_pixels: Count = Field(
        default=64_000_000, description="Pixels of all images of a request."
    )
    regions: Count = Field(default=100, description="Regions on one image.")
    tokens: Count = Field(default=1024, description="Tokens of an answer.")
    choices: Count = Field(default=4, description="Answers to one request (n).")
    queue: Count = Field(
        default=128,
        description="Answers running or waiting, of all clients; more requests get a 503.",
    )
    answer_seconds: Seconds = Field(
        default=300, description="Seconds in which an answer must be complete."
    )
    preparing: Count = Field(
        default=2, description="Requests whose images are decoded at the same time."
    )
    uploads: Count = Field(default=256, description="Uploaded images in memory.")
    uploads_bytes: Count = Field(default=256 * _MIB, description="Bytes of all uploaded images.")
    upload_seconds: Seconds = Field(
        default=3600, description="Seconds that an uploaded image is kept."
    )
    fetch_seconds: Seconds = Field(default=10, description="Seconds to fetch one image.")
    fetch_redirects: int = Field(default=3, ge=0, description="Redirects to follow for one image.")


class ServerSettings(_Frozen):
    """How a server listens, which requests it accepts and what it logs."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0: any free one."
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="Names allowed in the Host header, besides loopback and the listening address.",
    )
    keys: tuple[SecretStr, ...] = Field(default=(), description="API keys; none: no key is needed.")
    open_to_all: bool = Field(
        default=False, description="Allow listening beyond loopback without an API key."
    )
    origins: tuple[str, ...] = Field(
        default=(), description="Web pages (scheme://host:port) whose scripts may send requests."
    )
    fetch_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts that images may be fetched from (https only); none: no fetching.",
    )
    log_content: bool = Field(default=False, description="Log prompts and answers.")
    drain_seconds: Seconds = Field(
        default=30, description="Seconds that running answers have to finish when the server stops."
    )
    limits: Limits = Limits()

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(keys, 1):
            text = key.get_secret_value()
            if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
                # The key itself stays out of the message.
                raise ValueError(
                    f"API key number {number} must have at least 16 printable ASCII characters "
                    "without blanks"
                )
        return keys

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise ValueError(f"{origin!r} must be an origin like https://example.org")
        return origins

    @field_validator("fetch_hosts")
    @classmethod
    def _check_fetch_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normalize_host_entry(host) for host in hosts)

    def check_open(self) -> None:
        """Raise ServingError if the server is open to a network without an API key by accident."""
        if not is_loopback(self.host) and not self.keys and not self.open_to_all:
            raise ServingError(
                f"listening on {self.host} without an API key opens the server to the network: set an "
                "API key, listen on 127.0.0.1, or allow it (open_to_all)"
            )


def is_loopback(host: str) -> bool:
    """Whether a listening address is reachable from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def make_settings(**values: object) -> ServerSettings:
    """Validated settings; ServingError names the first wrong value and what is allowed."""
    try:
        return ServerSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = Limits if first["loc"][0] == "limits" else ServerSettings
            text = f"unknown setting; known are {', '.join(known.model_fields)}"
        raise ServingError(f"{name}: {text}") from None
