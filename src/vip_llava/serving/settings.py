"""What an operator may set of a server, and every limit with its default.

Values only: nothing here opens a socket or reads a file. The descriptions are the text of the
command's help and of the documentation, so they are written for the operator.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from vip_llava.errors import ServingError
from vip_llava.serving.middleware.hosts import folded_entry

__all__ = ["Limits", "ServerSettings", "is_loopback", "make_settings"]

_MIB = 2**20

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Value(BaseModel):
    """A frozen value that knows no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Value):
    """What one request, one client and all together may take. What is over a limit is refused."""

    body_bytes: Count = Field(default=32 * _MIB, description="Bytes of a request's body.")
    bodies_bytes: Count = Field(
        default=256 * _MIB, description="Bytes of all bodies held at one time."
    )
    body_seconds: Seconds = Field(default=30, description="Seconds in which a body has to arrive.")
    header_seconds: Seconds = Field(
        default=15,
        description="Seconds in which a request's head has to arrive; also between requests.",
    )
    write_seconds: Seconds = Field(
        default=30, description="Seconds that a client may leave what was sent to it unread."
    )
    connections: Count = Field(default=1000, description="Open connections.")
    client_connections: Count = Field(default=256, description="Open connections of one address.")
    rate: float = Field(
        default=600,
        ge=0,
        allow_inf_nan=False,
        description="Requests a minute of one client; 0: no limit.",
    )
    burst: Count = Field(default=120, description="Requests that one client may make at once.")
    messages: Count = Field(default=64, description="Messages of a conversation.")
    text_chars: Count = Field(default=100_000, description="Characters of all texts of a request.")
    images: Count = Field(default=8, description="Images of a request.")
    image_bytes: Count = Field(default=16 * _MIB, description="Bytes of one image file.")
    image_pixels: Count = Field(default=32_000_000, description="Pixels of one image.")
    request_pixels: Count = Field(default=64_000_000, description="Pixels of a request's images.")
    regions: Count = Field(default=100, description="Regions on one image.")
    tokens: Count = Field(default=1024, description="Tokens of an answer.")
    choices: Count = Field(default=4, description="Answers to one request (n).")
    queue: Count = Field(
        default=128,
        description="Answers being made or waiting, of all clients; more requests get a 503.",
    )
    answer_seconds: Seconds = Field(
        default=300, description="Seconds until an answer has to be whole."
    )
    preparing: Count = Field(default=2, description="Requests whose images are opened at one time.")
    uploads: Count = Field(default=256, description="Uploaded images that are kept.")
    uploads_bytes: Count = Field(default=256 * _MIB, description="Bytes of all uploaded images.")
    upload_seconds: Seconds = Field(
        default=3600, description="Seconds that an uploaded image is kept."
    )
    fetch_seconds: Seconds = Field(default=10, description="Seconds for fetching one image.")
    fetch_redirects: int = Field(default=3, ge=0, description="Redirects that are followed.")


class ServerSettings(_Value):
    """How a server listens, whom it serves and what it tells."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0: any free one."
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="Names in the Host header, besides loopback and the address listened on.",
    )
    keys: tuple[SecretStr, ...] = Field(default=(), description="API keys; none: everyone may ask.")
    open_to_all: bool = Field(
        default=False, description="Listen on other addresses than loopback without any API key."
    )
    origins: tuple[str, ...] = Field(
        default=(), description="Web pages (scheme://host:port) whose scripts may ask."
    )
    fetch_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts that images are fetched from (https only); none: no fetching.",
    )
    log_content: bool = Field(default=False, description="Write questions and answers to the log.")
    drain_seconds: Seconds = Field(
        default=30, description="Seconds that running answers have when the server is stopped."
    )
    limits: Limits = Limits()

    @field_validator("keys")
    @classmethod
    def _keys_are_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(keys, 1):
            text = key.get_secret_value()
            if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
                # The key itself stays out of the message.
                raise ValueError(
                    f"API key number {number} is not usable: a key has at least 16 printable ASCII "
                    "characters and no blanks"
                )
        return keys

    @field_validator("origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise ValueError(f"{origin!r} is no origin; write it like https://example.org")
        return origins

    @field_validator("fetch_hosts")
    @classmethod
    def _fetch_hosts_are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(folded_entry(host) for host in hosts)

    def check_open(self) -> None:
        """ServingError where everybody on a network could ask without a key, unless that is wanted."""
        if not is_loopback(self.host) and not self.keys and not self.open_to_all:
            raise ServingError(
                f"listening on {self.host} lets everyone who reaches this machine ask: give an API "
                "key, listen on 127.0.0.1, or say that it is wanted (open_to_all)"
            )


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def make_settings(**values: object) -> ServerSettings:
    """Settings of unchecked values; ServingError that names the first wrong one and what it may be."""
    try:
        return ServerSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = Limits if first["loc"][0] == "limits" else ServerSettings
            text = f"there is no such setting; there are {', '.join(known.model_fields)}"
        raise ServingError(f"{name}: {text}") from None
