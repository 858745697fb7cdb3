"""`vip-llava serve`: the API over HTTP, with one model or several on one machine."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.cluster import model_name, named_models
from vip_llava.cli.serve_models import serve_models
from vip_llava.cli.server_options import ServerOptions, log_to_stderr, needs_serve
from vip_llava.cli.model_options import DebugFlag, ModelOptions
from vip_llava.cli.terminal import note
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant
    from vip_llava.serving.settings import ServerSettings

__all__ = ["EPILOG", "serve"]

EPILOG = """Examples

  vip-llava serve --check

  vip-llava serve --model ./checkpoint --port 8080 --limit tokens=2048 --limit rate=60 --check

  vip-llava serve --models default,mine=./checkpoint --check

  vip-llava serve --host 0.0.0.0 --open-to-all --allow-host models.example.org --check

Without --check the server runs until Ctrl-C.
"""


def serve(
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What clients call the model."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            metavar="A,B",
            help="Several models, a process each: NAME|FOLDER or CALLED=NAME|FOLDER.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print the settings with all limits, and end.")
    ] = False,
    server: ServerOptions,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Answer over HTTP as the OpenAI API does, with regions on the images.

    Listens on this machine only, unless told otherwise. The model is opened while the server
    already runs: /ready says when it can answer. Ctrl-C lets running answers end.
    """
    settings = server.settings()
    settings.check_open()
    if models is not None and (name or model.model):
        raise ServingError("--models names all models; leave out --model and --name")
    many = named_models(models) if models is not None else {}
    model.check_models(many.values())
    called = name or (model_name(model.model) if model.model else "default")
    if check:
        told = settings.model_dump(mode="json", exclude={"keys"})
        told |= {"models": list(many)} if many else {"model": called}
        told |= {"api_keys": len(settings.keys)}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    log_to_stderr(debug=debug)
    if many:
        serve_models(many, model, settings)
        return
    _run(called, model, settings)


def _run(called: str, model: ModelOptions, settings: ServerSettings) -> None:
    """Serve until a signal; raises what kept the model from being opened."""
    needs_serve()
    from vip_llava.serving.api.app import create_app, served_models
    from vip_llava.serving.middleware.server import listen, run, stop

    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        stop(app)

    app = create_app({}, settings, loaders={called: lambda: _opened(model)}, on_failure=failed)
    # The port is taken before anything heavy is loaded, so that a taken one is told at once.
    listener = listen(settings)
    run(app, settings, listener=listener, on_ready=lambda address: note(f"listening on {address}"))
    if failures:
        raise failures[0]
    if served_models(app).loading:
        # Stopped while a model is being opened: that thread can't be interrupted, and Python
        # taken down around it ends in a crash.
        sys.stderr.flush()
        os._exit(0)


def _opened(model: ModelOptions) -> Assistant:
    """The model, with progress as lines: a bar would run through the log."""
    from vip_llava.assistant import load

    keywords: dict[str, Any] = model.keywords()
    note(f"opening {model.model or 'the default model'}")
    assistant = load(model.model, **keywords)
    # The model's many objects stay: without them the collector looks often enough for what requests
    # leave behind, and what it looks at is little.
    gc.collect()
    gc.freeze()
    note(f"ready: {assistant.info.architecture}, {assistant.info.dtype}, {assistant.info.device}")
    return assistant
