"""Options of every verb that listens on a network, and the settings that they make.

Names and help texts only; what is allowed is decided by `serving.settings`. Keys are read from a
file or from the environment: a command line is seen by everyone on a machine.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.errors import MissingExtraError, ServingError

if TYPE_CHECKING:
    from vip_llava.serving.settings import ServerSettings

__all__ = ["KEY_VARIABLE", "ServerOptions", "log_to_stderr", "needs_serve"]

KEY_VARIABLE = "VIP_LLAVA_API_KEY"
SERVER_PANEL, ACCESS_PANEL = "Server", "Access"


def _server(*flags: str, metavar: str, text: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=SERVER_PANEL)


def _access(*flags: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=ACCESS_PANEL)


@dataclasses.dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server listens and whom it serves."""

    host: Annotated[
        str | None,
        _server("--host", metavar="ADDRESS", text="Address to listen on (127.0.0.1)."),
    ] = None
    port: Annotated[
        int | None, _server("--port", metavar="N", text="Port to listen on; 0: any free one.")
    ] = None
    drain: Annotated[
        float | None,
        _server("--drain", metavar="SECONDS", text="Time for running answers when stopped (30)."),
    ] = None
    limit: Annotated[
        list[str] | None,
        _server(
            "--limit", metavar="NAME=N", text="Change a limit (repeatable); --check shows all."
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        _access(
            "--api-key-file",
            metavar="FILE",
            text=f"API keys, one a line; or one in the variable {KEY_VARIABLE}.",
        ),
    ] = None
    open_to_all: Annotated[
        bool,
        _access("--open-to-all", text="Listen on a network without any API key."),
    ] = False
    allow_host: Annotated[
        list[str] | None,
        _access("--allow-host", metavar="NAME", text="A further name of this server (repeatable)."),
    ] = None
    origin: Annotated[
        list[str] | None,
        _access(
            "--origin", metavar="ORIGIN", text="A web page whose scripts may ask (repeatable)."
        ),
    ] = None
    fetch_host: Annotated[
        list[str] | None,
        _access("--fetch-host", metavar="NAME", text="A host to fetch images from (repeatable)."),
    ] = None
    log_content: Annotated[
        bool, _access("--log-content", text="Write questions and answers to the log.")
    ] = False

    def settings(self, **defaults: Any) -> ServerSettings:
        """The settings that were typed; `defaults` are of the verb. Raises ServingError."""
        needs_serve()
        from vip_llava.serving.settings import make_settings

        typed = {
            "host": self.host,
            "port": self.port,
            "drain_seconds": self.drain,
            "limits": _limits(self.limit or []),
            "keys": _keys(self.api_key_file),
            "open_to_all": self.open_to_all or None,
            "hosts": self.allow_host,
            "origins": self.origin,
            "fetch_hosts": self.fetch_host,
            "log_content": self.log_content or None,
        }
        found = {name: value for name, value in typed.items() if value not in (None, [], {})}
        return make_settings(**{**defaults, **found})


def needs_serve() -> None:
    """MissingExtraError where one of the libraries of the extra `serve` is missing."""
    for name in ("fastapi", "uvicorn", "httpx", "prometheus_client", "python_multipart"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"serving needs the library {name}: pip install 'vip-llava[serve]'"
            ) from error


def log_to_stderr(*, debug: bool = False) -> None:
    """One line an event of the server, on stderr."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("vip_llava").setLevel(logging.DEBUG if debug else logging.INFO)


def _keys(file: Path | None) -> list[str]:
    keys = []
    if file is not None:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ServingError(f"--api-key-file {file}: there is no key in it")
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
