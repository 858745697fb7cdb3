"""`vip-llava serve`: the API over HTTP, with one model or several on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vip_llava.cli.cluster import model_name, named_models
from vip_llava.cli.model_options import DebugFlag, ModelOptions
from vip_llava.cli.serve_models import serve_models
from vip_llava.cli.server_options import CheckFlag, ServerOptions
from vip_llava.cli.server_process import (
    load_for_serving,
    log_to_stderr,
    print_settings,
    run_app,
)
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.serving.settings import ServerSettings

__all__ = ["EPILOG", "serve"]

EPILOG = """Examples

  vip-llava serve --check

  vip-llava serve --model ./checkpoint --port 8080 --limit tokens=2048 --check

  vip-llava serve --models default,mine=./checkpoint --check

  vip-llava serve --host 0.0.0.0 --open-to-all --allow-host my.example --check

Without --check the server runs until Ctrl-C.
"""


def serve(
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The model's name in the API."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            metavar="A,B",
            help="Several models, one process each: NAME|FOLDER or CALLED=NAME|FOLDER.",
        ),
    ] = None,
    check: CheckFlag = False,
    server: ServerOptions,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Serve the OpenAI API over HTTP, with regions on images.

    It listens on this machine only, unless --host says otherwise. The model loads while the server
    already runs: /ready reports when it can answer. Ctrl-C lets running answers finish.
    """
    settings = server.settings()
    settings.check_open()
    if models is not None and (name or model.model):
        raise ServingError("--models names all models; leave out --model and --name")
    several = named_models(models) if models is not None else {}
    model.check_models(several.values())
    called = name or (model_name(model.model) if model.model else "default")
    if check:
        print_settings(settings, **({"models": list(several)} if several else {"model": called}))
        return
    log_to_stderr(debug=debug)
    if several:
        serve_models(several, model, settings)
    else:
        _serve_one(called, model, settings)


def _serve_one(called: str, model: ModelOptions, settings: ServerSettings) -> None:
    from vip_llava.serving.api.app import create_app
    from vip_llava.serving.middleware.server import listen

    keywords = model.keywords()
    loaders = {called: lambda: load_for_serving(model.model, keywords)}
    # Open the port before anything heavy is loaded, so that a taken port is reported at once.
    run_app(
        lambda failed: create_app({}, settings, loaders=loaders, on_failure=failed),
        settings,
        listen(settings),
    )
