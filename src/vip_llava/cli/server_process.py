"""Runs a server in this process: its libraries, its log, its models, and its end.

Shared by `serve`, `controller`, `worker` and `web`. It does not know options or routes.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vip_llava.cli.terminal import note
from vip_llava.errors import MissingExtraError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vip_llava.assistant import Assistant
    from vip_llava.serving.settings import ServerSettings

__all__ = ["load_for_serving", "log_to_stderr", "needs_serve", "print_settings", "run_app"]


def needs_serve() -> None:
    """MissingExtraError if a library of the extra `serve` is missing."""
    for name in ("fastapi", "uvicorn", "httpx", "prometheus_client", "python_multipart"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"serving needs the library {name}: pip install 'vip-llava[serve]'"
            ) from error


def log_to_stderr(*, debug: bool = False) -> None:
    """Log the server's events to stderr, one line each."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("vip_llava").setLevel(logging.DEBUG if debug else logging.INFO)


def print_settings(settings: ServerSettings, **more: Any) -> None:
    """Print the settings as JSON for --check, with the number of API keys instead of the keys."""
    values = settings.model_dump(mode="json", exclude={"keys"})
    values |= {"api_keys": len(settings.keys), **more}
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def load_for_serving(model: str | None, keywords: Mapping[str, Any]) -> Assistant:
    """Load a model, None for the default one. Progress is lines: a bar would garble the log."""
    from vip_llava.assistant import load

    note(f"opening {model or 'the default model'}")
    assistant = load(model, **keywords)
    # The model's objects are permanent. Frozen, they do not slow down the collections that free
    # what requests leave behind.
    gc.collect()
    gc.freeze()
    info = assistant.info
    note(f"ready: {info.architecture}, {info.dtype}, {info.device}")
    return assistant


def run_app(
    make_app: Callable[[Callable[[Exception], None]], FastAPI],
    settings: ServerSettings,
    listener: Any,
    *,
    ready: str = "listening on",
) -> None:
    """Serve an application, which may load its models meanwhile, until a signal.

    Args:
        make_app: takes the callback for a model that fails to load; the server then stops.
        listener: the listening socket, from `listen`.
        ready: the note once the server accepts requests; its address follows.

    Raises:
        Exception: the error of a model that failed to load.
    """
    from vip_llava.serving.api.app import served_models
    from vip_llava.serving.middleware.server import run, stop

    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        stop(app)

    app = make_app(on_failure)
    run(app, settings, listener=listener, on_ready=lambda address: note(f"{ready} {address}"))
    if failures:
        raise failures[0]
    if served_models(app).loading:
        # A thread is still loading a model. It can't be interrupted, and it would crash while the
        # interpreter shuts down.
        sys.stderr.flush()
        os._exit(0)
