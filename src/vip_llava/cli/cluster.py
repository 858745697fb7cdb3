"""What the verbs of a cluster share: models by name, the secret, and a process under another's care."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.serving.cluster.signing import Secret

__all__ = [
    "host_of",
    "managed_secret",
    "model_name",
    "named_models",
    "secret_from",
    "until_stdin_ends",
    "worker_address",
]


def named_models(typed: str) -> dict[str, str | None]:
    """Names and models of `--models a,NAME=b,default`; the value None is the default model.

    ServingError for an empty entry, or two models of one name.
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
    """What clients call a model: the last part of its name or folder.

    Of `run/checkpoint-100` it is `run_checkpoint-100`, as in the original.
    """
    parts = [part for part in Path(model).parts if part not in ("/", ".")]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1] if parts else ""


def secret_from(file: Path | None, *, make: bool = False) -> Secret:
    """The cluster's secret of a file or the environment; `make` writes a file that is not there.

    ServingError where there is none.
    """
    from vip_llava.cli.terminal import note
    from vip_llava.serving.cluster.signing import SECRET_VARIABLE, read_secret

    if file is not None and make and not file.expanduser().exists():
        path = file.expanduser()
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32) + "\n", encoding="utf-8")
        note(f"a new secret is in {path}: give a copy of the file to the workers")
    found = read_secret(file.expanduser() if file else None)
    if found is None:
        raise ServingError(
            f"controller and workers know each other by a secret: name a file with --secret-file "
            f"(the controller makes it), or set {SECRET_VARIABLE}"
        )
    return found


def managed_secret() -> Secret:
    """The secret as the first line of the standard input."""
    from vip_llava.serving.cluster.signing import Secret

    return Secret(sys.stdin.buffer.readline(4096).decode("utf-8", "replace").strip())


def until_stdin_ends(stop: Callable[[], None]) -> None:
    """Call `stop` when the standard input ends, which it does when its writer is gone."""

    def watch() -> None:
        # Not through sys.stdin, whose lock Python wants when it ends.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=watch, name="vip-llava-parent", daemon=True).start()


def worker_address(typed: str | None, listening: tuple[str, int]) -> str:
    """Where the controller reaches who listens there. ServingError where that is not known."""
    from vip_llava.serving.cluster.heartbeat import parse_base_url

    if typed is not None:
        return parse_base_url(typed)
    host, port = listening
    if host in ("0.0.0.0", "::"):
        raise ServingError(
            f"listening on {host}, the worker does not know its address: name the one that the "
            f"controller sees, like --worker-address http://10.1.2.3:{port}"
        )
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def host_of(address: str) -> str:
    """The host of an address, as a Host header names it."""
    return urlsplit(address).hostname or ""
