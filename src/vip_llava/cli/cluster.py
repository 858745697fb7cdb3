"""What the verbs of a cluster share: model names, the secret, addresses, and managed processes."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vip_llava.cli.terminal import note
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.serving.cluster.signing import Secret

__all__ = [
    "CLUSTER_PANEL",
    "host_of",
    "managed_secret",
    "model_name",
    "named_models",
    "secret_from",
    "until_stdin_ends",
    "worker_address",
]

CLUSTER_PANEL = "Cluster"


def named_models(typed: str) -> dict[str, str | None]:
    """Names and models of `--models a,NAME=b,default`; None is the default model.

    Raises ServingError for an empty entry or a name that occurs twice.
    """
    found: dict[str, str | None] = {}
    for entry in typed.split(","):
        name, named, model = (part.strip() for part in entry.partition("="))
        model = model if named else name
        name = name if named else model_name(model)
        if not name or not model or any(mark.isspace() for mark in name):
            raise ServingError(f"--models {typed!r}: write it like NAME|FOLDER,NAME|FOLDER")
        if name in found:
            raise ServingError(
                f"--models {typed!r}: two models are called {name}; "
                f"give them names: first=FOLDER,second=FOLDER"
            )
        found[name] = None if model == "default" else model
    return found


def model_name(model: str) -> str:
    """A model's name in the API: the last part of its name or folder.

    For `run/checkpoint-100` it is `run_checkpoint-100`, as in the original.
    """
    parts = [part for part in Path(model).parts if part not in ("/", ".")]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1] if parts else ""


def secret_from(file: Path | None, *, make: bool = False) -> Secret:
    """The cluster's secret from a file or the environment; `make` creates a missing file.

    Raises ServingError if there is no secret.
    """
    from vip_llava.serving.cluster.signing import SECRET_VARIABLE, read_secret

    path = file.expanduser() if file is not None else None
    if path is not None and make and not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32) + "\n", encoding="utf-8")
        note(f"wrote a new secret to {path}: give a copy of the file to the workers")
    found = read_secret(path)
    if found is None:
        raise ServingError(
            "controller and workers need a common secret: name a file with --secret-file (the "
            f"controller creates it), or set {SECRET_VARIABLE}"
        )
    return found


def managed_secret() -> Secret:
    """The secret from the first line of stdin."""
    from vip_llava.serving.cluster.signing import Secret

    return Secret(sys.stdin.buffer.readline(4096).decode("utf-8", "replace").strip())


def until_stdin_ends(stop: Callable[[], None]) -> None:
    """Call `stop` once stdin ends, which happens when the parent process ends."""

    def watch() -> None:
        # os.read does not take the lock of sys.stdin, which the interpreter needs to shut down.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=watch, name="vip-llava-parent", daemon=True).start()


def worker_address(typed: str | None, listening: tuple[str, int]) -> str:
    """The worker's address for the controller. Raises ServingError if it is not known."""
    from vip_llava.serving.cluster.heartbeat import parse_base_url

    if typed is not None:
        return parse_base_url(typed)
    host, port = listening
    if host in ("0.0.0.0", "::"):
        raise ServingError(
            f"the worker listens on {host}, which is not an address the controller can reach: "
            f"give one, like --worker-address http://10.1.2.3:{port}"
        )
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def host_of(address: str) -> str:
    """The host of an address, as in a Host header."""
    return urlsplit(address).hostname or ""
