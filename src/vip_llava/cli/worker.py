"""`vip-llava worker`: one or several models that answer for a controller."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.cluster import (
    host_of,
    managed_secret,
    named_models,
    secret_from,
    until_stdin_ends,
    worker_address,
)
from vip_llava.cli.legacy_options import LEGACY_PANEL
from vip_llava.cli.server_options import ServerOptions, log_to_stderr
from vip_llava.cli.model_options import DebugFlag, ModelOptions
from vip_llava.cli.terminal import note
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant
    from vip_llava.serving.cluster.heartbeat import HeartbeatClient
    from vip_llava.serving.cluster.signing import Secret
    from vip_llava.serving.settings import ServerSettings

__all__ = ["EPILOG", "worker"]

PORT = 21002
CONTROLLER = "http://127.0.0.1:21001"
CLUSTER_PANEL = "Cluster"

EPILOG = """Examples

  vip-llava worker --check

  vip-llava worker --model-path ./checkpoint --controller http://127.0.0.1:21001 --secret-file cluster.secret --check

  vip-llava worker --models default,mine=./checkpoint --port 21003 --check

  vip-llava worker --model-path ./checkpoint --load-8bit --no-register --check

Without --check it runs until Ctrl-C.
"""


def _cluster(*flags: str, text: str, metavar: str | None = None, hidden: bool = False) -> Any:
    return typer.Option(
        *flags, metavar=metavar, help=text, rich_help_panel=CLUSTER_PANEL, hidden=hidden
    )


@dataclasses.dataclass(frozen=True, slots=True)
class PlaceOptions:
    """The worker's place in a cluster."""

    controller: Annotated[
        str,
        _cluster(
            "--controller", "--controller-address", metavar="URL", text="The controller to join."
        ),
    ] = CONTROLLER
    worker_address: Annotated[
        str | None,
        _cluster(
            "--worker-address",
            metavar="URL",
            text="This worker as the controller reaches it; needed when listening on a network.",
        ),
    ] = None
    secret_file: Annotated[
        Path | None,
        _cluster("--secret-file", metavar="FILE", text="The secret shared with the controller."),
    ] = None
    no_register: Annotated[
        bool, _cluster("--no-register", text="Stand alone: no controller, no secret.")
    ] = False
    speed: Annotated[
        float, _cluster("--speed", metavar="S", text="Beside other workers, for dispatch.")
    ] = 1.0
    heart_beat: Annotated[
        float | None,
        _cluster("--heart-beat", metavar="SECONDS", text="Between signs of life (15)."),
    ] = None
    managed: Annotated[
        bool, _cluster("--managed", text="The secret and the end come on stdin.", hidden=True)
    ] = False
    limit_model_concurrency: Annotated[
        int | None,
        typer.Option(
            "--limit-model-concurrency",
            metavar="N",
            help="Not needed: requests share the steps of a model. See --limit queue=N.",
            rich_help_panel=LEGACY_PANEL,
        ),
    ] = None

    def secret(self) -> Secret | None:
        """The cluster's secret, None where the worker stands alone."""
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
        typer.Option("--name", "--model-name", metavar="NAME", help="What clients call the model."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print the settings with all limits, and end.")
    ] = False,
    place: PlaceOptions,
    server: ServerOptions,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Answer for a controller, with one model or several.

    It has the API's routes and those of the original's worker. It joins the controller once its
    models are open, joins again when the controller was away, and leaves before it stops.
    """
    chosen = _chosen(models, model.model, name)
    model.check_models(chosen.values())
    settings = server.settings(port=PORT)
    if place.limit_model_concurrency is not None:
        note("--limit-model-concurrency does nothing here; --limit queue=N bounds what may wait")
    if check:
        told = settings.model_dump(mode="json", exclude={"keys"})
        told |= {"api_keys": len(settings.keys), "models": list(chosen)}
        told |= {"controller": None if place.no_register else place.controller}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    secret = place.secret()
    log_to_stderr(debug=debug)
    _run(chosen, model.keywords(), settings, place, secret)


def _chosen(models: str | None, model: str | None, name: str | None) -> dict[str, str | None]:
    """Models by name. ServingError for a contradiction."""
    if models is not None and (model is not None or name is not None):
        raise ServingError("--models names all models; leave out --model and --name")
    if models is not None:
        return named_models(models)
    if name is not None:
        return {name: model}
    return named_models(model or "default")


def _run(
    chosen: dict[str, str | None],
    keywords: dict[str, Any],
    settings: ServerSettings,
    place: PlaceOptions,
    secret: Secret | None,
) -> None:
    """Serve until a signal; raises what kept a model from being opened."""
    from vip_llava.serving.api.app import served_models
    from vip_llava.serving.cluster.worker import create_worker
    from vip_llava.serving.cluster.worker_status import worker_settings
    from vip_llava.serving.middleware.server import listen, run, stop

    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        stop(app)

    served = settings if secret is None else worker_settings(settings, secret)
    listener = listen(served)
    address = worker_address(place.worker_address, listener.getsockname()[:2])
    settings = settings.model_copy(update={"hosts": (*settings.hosts, host_of(address))})
    loaders = {called: _loader(called, model, keywords) for called, model in chosen.items()}
    app = create_worker(
        {},
        settings,
        loaders=loaders,
        on_failure=failed,
        secret=secret,
        join=None if secret is None else lambda status: _joining(place, address, secret, status),
        speed=place.speed,
    )
    if place.managed:
        until_stdin_ends(lambda: stop(app))
    run(app, served, listener=listener, on_ready=lambda _: note(f"listening on {address}"))
    if failures:
        raise failures[0]
    if served_models(app).loading:
        # As `serve` does: the thread that opens a model can't be interrupted.
        sys.stderr.flush()
        os._exit(0)


def _joining(place: PlaceOptions, address: str, secret: Secret, status: Any) -> HeartbeatClient:
    from vip_llava.serving.cluster.heartbeat import HEARTBEAT_SECONDS, HeartbeatClient

    interval = HEARTBEAT_SECONDS if place.heart_beat is None else place.heart_beat
    return HeartbeatClient(place.controller, address, secret, status, interval=interval)


def _loader(called: str, model: str | None, keywords: dict[str, Any]) -> Any:
    def load_it() -> Assistant:
        from vip_llava.assistant import load

        note(f"opening {called}")
        return load(model, **keywords)

    return load_it
