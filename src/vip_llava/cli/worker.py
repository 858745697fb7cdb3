"""`vip-llava worker`: one or several models that answer for a controller."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.cluster import (
    CLUSTER_PANEL,
    host_of,
    managed_secret,
    named_models,
    secret_from,
    until_stdin_ends,
    worker_address,
)
from vip_llava.cli.legacy_options import LEGACY_PANEL
from vip_llava.cli.model_options import DebugFlag, ModelOptions
from vip_llava.cli.server_options import CheckFlag, ServerOptions
from vip_llava.cli.server_process import (
    load_for_serving,
    log_to_stderr,
    print_settings,
    run_app,
)
from vip_llava.cli.terminal import note
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vip_llava.serving.cluster.signing import Secret
    from vip_llava.serving.settings import ServerSettings

__all__ = ["EPILOG", "worker"]

PORT = 21002
CONTROLLER = "http://127.0.0.1:21001"

EPILOG = """Examples

  vip-llava worker --check

  vip-llava worker --model ./checkpoint --secret-file my.secret --check

  vip-llava worker --models default,mine=./checkpoint --port 21003 --check

  vip-llava worker --model ./checkpoint --load-8bit --no-register --check

Without --check it runs until Ctrl-C.
"""


def _cluster(*flags: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=CLUSTER_PANEL, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How a worker joins a cluster."""

    controller: Annotated[
        str,
        _cluster(
            "--controller",
            metavar="URL",
            text="The controller to register at.",
        ),
    ] = CONTROLLER
    worker_address: Annotated[
        str | None,
        _cluster(
            "--worker-address",
            metavar="URL",
            text="This worker's address for the controller; needed on a network.",
        ),
    ] = None
    secret_file: Annotated[
        Path | None,
        _cluster("--secret-file", metavar="FILE", text="The secret shared with the controller."),
    ] = None
    no_register: Annotated[
        bool, _cluster("--no-register", text="Run alone, without controller and secret.")
    ] = False
    speed: Annotated[
        float, _cluster("--speed", metavar="S", text="Speed relative to other workers.")
    ] = 1.0
    heart_beat: Annotated[
        float | None,
        _cluster(
            "--heart-beat",
            metavar="SECONDS",
            min=0.1,
            text="Time between heartbeats (default: 15).",
        ),
    ] = None
    managed: Annotated[
        bool,
        _cluster("--managed", text="Read the secret from stdin; stop when it ends.", hidden=True),
    ] = False
    limit_model_concurrency: Annotated[
        int | None,
        typer.Option(
            "--limit-model-concurrency",
            metavar="N",
            help="No effect: requests run in one batch. See --limit queue=N.",
            rich_help_panel=LEGACY_PANEL,
        ),
    ] = None

    def secret(self) -> Secret | None:
        """The cluster's secret; None for a worker that runs alone."""
        if self.managed:
            return managed_secret()
        return None if self.no_register else secret_from(self.secret_file)


def worker(
    *,
    models: Annotated[
        str | None,
        typer.Option(
            "--models", metavar="A,B", help="Several models: NAME|FOLDER or CALLED=NAME|FOLDER."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The model's name in the API."),
    ] = None,
    check: CheckFlag = False,
    cluster: ClusterOptions,
    server: ServerOptions,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Answer for a controller, with one model or several.

    It has the API's routes and those of the original's worker. It registers once its models are
    loaded, registers again after the controller was away, and unregisters before it stops.
    """
    chosen = _chosen(models, model.model, name)
    model.check_models(chosen.values())
    settings = server.settings(port=PORT)
    if cluster.limit_model_concurrency is not None:
        note("--limit-model-concurrency has no effect; --limit queue=N limits waiting requests")
    if check:
        controller = None if cluster.no_register else cluster.controller
        print_settings(settings, models=list(chosen), controller=controller)
        return
    secret = cluster.secret()
    log_to_stderr(debug=debug)
    _run(chosen, model.keywords(), settings, cluster, secret)


def _chosen(models: str | None, model: str | None, name: str | None) -> dict[str, str | None]:
    """Models by name. Raises ServingError if the options contradict each other."""
    if models is not None and (model is not None or name is not None):
        raise ServingError("--models names all models; leave out --model and --name")
    if models is not None:
        return named_models(models)
    return {name: model} if name is not None else named_models(model or "default")


def _run(
    chosen: dict[str, str | None],
    keywords: dict[str, Any],
    settings: ServerSettings,
    cluster: ClusterOptions,
    secret: Secret | None,
) -> None:
    """Serve until a signal. Raises the error of a model that fails to load."""
    from vip_llava.serving.cluster.heartbeat import HEARTBEAT_SECONDS
    from vip_llava.serving.cluster.worker import create_worker
    from vip_llava.serving.cluster.worker_status import worker_settings
    from vip_llava.serving.middleware.server import listen, stop

    served = settings if secret is None else worker_settings(settings, secret)
    listener = listen(served)
    address = worker_address(cluster.worker_address, listener.getsockname()[:2])
    settings = settings.model_copy(update={"hosts": (*settings.hosts, host_of(address))})
    loaders = {
        called: functools.partial(load_for_serving, model, keywords)
        for called, model in chosen.items()
    }

    def make_app(on_failure: Callable[[Exception], None]) -> FastAPI:
        app = create_worker(
            {},
            settings,
            loaders=loaders,
            on_failure=on_failure,
            secret=secret,
            controller=None if secret is None else cluster.controller,
            address=address,
            heartbeat_seconds=cluster.heart_beat or HEARTBEAT_SECONDS,
            speed=cluster.speed,
        )
        if cluster.managed:
            until_stdin_ends(lambda: stop(app))
        return app

    run_app(make_app, served, listener)
