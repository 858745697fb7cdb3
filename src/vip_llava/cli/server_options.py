"""The options of every verb that listens on a network, and the `ServerSettings` they make.

This module holds names and help texts; `serving.settings` checks the values. Keys come from a file
or the environment, because all users of a machine can read its command lines.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.server_process import needs_serve
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.serving.settings import ServerSettings

__all__ = ["KEY_VARIABLE", "CheckFlag", "ListenOptions", "ServerOptions"]

KEY_VARIABLE = "VIP_LLAVA_API_KEY"
SERVER_PANEL, ACCESS_PANEL = "Server", "Access"

CheckFlag = Annotated[
    bool, typer.Option("--check", help="Print the settings with all limits, and exit.")
]


def _server(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=SERVER_PANEL)


def _access(flag: str, metavar: str | None, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=ACCESS_PANEL)


@dataclasses.dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where a server listens, and its limits."""

    host: Annotated[
        str | None, _server("--host", "ADDRESS", "Address to listen on (default: 127.0.0.1).")
    ] = None
    port: Annotated[
        int | None, _server("--port", "N", "Port to listen on; 0 is any free port.")
    ] = None
    drain: Annotated[
        float | None,
        _server("--drain", "SECONDS", "At a stop, time to finish running answers (default: 30)."),
    ] = None
    limit: Annotated[
        list[str] | None,
        _server("--limit", "NAME=N", "Change a limit (repeatable); --check lists them."),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        _access("--allow-host", "NAME", "A further name of this server (repeatable)."),
    ] = None
    open_to_all: Annotated[
        bool, _access("--open-to-all", None, "Listen on a network without any API key.")
    ] = False

    def settings(self, **defaults: Any) -> ServerSettings:
        """The given settings over the verb's `defaults`. Raises ServingError."""
        needs_serve()
        from vip_llava.serving.settings import make_settings

        given = {name: value for name, value in self._given().items() if value}
        given |= {"port": self.port} if self.port is not None else {}
        given |= {"drain_seconds": self.drain} if self.drain is not None else {}
        return make_settings(**{**defaults, **given})

    def _given(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "limits": _limits(self.limit or []),
            "hosts": self.allow_host,
            "open_to_all": self.open_to_all,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ServerOptions(ListenOptions):
    """All options of a server of the API: also its keys, origins, image hosts and log."""

    api_key_file: Annotated[
        Path | None,
        _access("--api-key-file", "FILE", f"API keys, one a line; or one in ${KEY_VARIABLE}."),
    ] = None
    origin: Annotated[
        list[str] | None,
        _access("--origin", "ORIGIN", "A web site whose scripts may send requests (repeatable)."),
    ] = None
    fetch_host: Annotated[
        list[str] | None,
        _access("--fetch-host", "NAME", "A host to fetch images from (repeatable)."),
    ] = None
    log_content: Annotated[
        bool, _access("--log-content", None, "Write questions and answers to the log.")
    ] = False

    def _given(self) -> dict[str, Any]:
        return {
            # super() without arguments fails in a dataclass with slots, which is a new class.
            **ListenOptions._given(self),
            "keys": _keys(self.api_key_file),
            "origins": self.origin,
            "fetch_hosts": self.fetch_host,
            "log_content": self.log_content,
        }


def _keys(file: Path | None) -> list[str]:
    keys = []
    if file is not None:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ServingError(f"--api-key-file {file}: the file contains no key")
    if KEY_VARIABLE in os.environ:
        keys.append(os.environ[KEY_VARIABLE])
    return keys


def _limits(typed: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            equals = ""
        if not equals:
            raise ServingError(f"--limit {text}: write it like --limit tokens=2048")
        found[name.strip()] = number
    return found
