"""`vip-llava controller`: workers register here, and clients ask here."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vip_llava.cli.cluster import host_of, secret_from, worker_address
from vip_llava.cli.server_options import ServerOptions, log_to_stderr
from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.terminal import note

__all__ = ["EPILOG", "controller"]

PORT = 21001
CLUSTER_PANEL = "Cluster"

EPILOG = """Examples

  vip-llava controller --check

  vip-llava controller --secret-file cluster.secret --host 10.1.0.1 --allow-worker 10.1.0.0/16 --open-to-all --check

Without --check it runs until Ctrl-C. Workers are started with vip-llava worker.
"""


def controller(
    *,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            "--secret-file",
            metavar="FILE",
            help="The secret shared with the workers; made if it is not there.",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    allow_worker: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-worker",
            metavar="NETWORK|NAME",
            help="Where workers may listen (repeatable); this machine if not given.",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    dispatch: Annotated[
        str,
        typer.Option(
            "--dispatch-method",
            metavar="NAME",
            help="shortest_queue or lottery (by speed).",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = "shortest_queue",
    expiry: Annotated[
        float | None,
        typer.Option(
            "--expiry",
            metavar="SECONDS",
            help="A worker is dropped after so long a silence (45).",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            "--join",
            metavar="URL",
            help="Another controller, of the same secret, for which this one is a worker.",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    own_address: Annotated[
        str | None,
        typer.Option(
            "--own-address",
            metavar="URL",
            help="With --join: this controller as that one reaches it.",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print the settings with all limits, and end.")
    ] = False,
    server: ServerOptions,
    debug: DebugFlag = False,
) -> None:
    """Pass requests on to workers that register here, which may come and go.

    It has the API's routes and those of the original's controller. It opens no model. A worker
    needs the same secret and an allowed address, and has to prove both.
    """
    settings = server.settings(port=PORT)
    settings.check_open()
    from vip_llava.serving.cluster.admission import AddressAllowList
    from vip_llava.serving.cluster.controller import LOOPBACK, create_controller
    from vip_llava.serving.cluster.heartbeat import HeartbeatClient
    from vip_llava.serving.cluster.registry import EXPIRY_SECONDS, WorkerRegistry
    from vip_llava.serving.middleware.server import listen, run

    allowed = tuple(allow_worker or LOOPBACK)
    expiry = EXPIRY_SECONDS if expiry is None else expiry
    if check:
        AddressAllowList(allowed)
        WorkerRegistry(dispatch, expiry=expiry)
        told = settings.model_dump(mode="json", exclude={"keys"})
        told |= {"api_keys": len(settings.keys), "allow_worker": allowed}
        told |= {"dispatch_method": dispatch, "expiry": expiry}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    secret = secret_from(secret_file, make=True)
    log_to_stderr(debug=debug)
    listener = listen(settings)
    place = None
    if join is not None:
        own = worker_address(own_address, listener.getsockname()[:2])
        settings = settings.model_copy(update={"hosts": (*settings.hosts, host_of(own))})
        place = functools.partial(HeartbeatClient, join, own, secret)
    app = create_controller(
        settings, secret, dispatch=dispatch, allowed=allowed, expiry=expiry, join=place
    )
    run(app, settings, listener=listener, on_ready=lambda address: note(f"listening on {address}"))
