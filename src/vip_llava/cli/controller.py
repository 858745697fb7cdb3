"""`vip-llava controller`: workers register here, and clients send their requests here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vip_llava.cli.cluster import CLUSTER_PANEL, secret_from
from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.server_options import CheckFlag, ServerOptions
from vip_llava.cli.server_process import log_to_stderr, print_settings
from vip_llava.cli.terminal import note

__all__ = ["EPILOG", "controller"]

PORT = 21001

EPILOG = """Examples

  vip-llava controller --check

  vip-llava controller --secret-file my.secret --check

  vip-llava controller --allow-worker 10.1.0.0/16 --expiry 60 --check

  vip-llava controller --dispatch-method lottery --check

Without --check it runs until Ctrl-C. Start workers with vip-llava worker.
"""


def controller(
    *,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            "--secret-file",
            metavar="FILE",
            help="The secret shared with the workers; created if it is missing.",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    allow_worker: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-worker",
            metavar="NETWORK|NAME",
            help="Where workers may listen (repeatable; default: this machine).",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    dispatch: Annotated[
        str,
        typer.Option(
            "--dispatch-method",
            metavar="NAME",
            help="shortest_queue or lottery (weighted by speed).",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = "shortest_queue",
    expiry: Annotated[
        float | None,
        typer.Option(
            "--expiry",
            metavar="SECONDS",
            help="Drop a worker after this time without a heartbeat (default: 45).",
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    check: CheckFlag = False,
    server: ServerOptions,
    debug: DebugFlag = False,
) -> None:
    """Forward requests to the workers that register here; they may come and go.

    It has the API's routes and those of the original's controller, and loads no model. A worker
    needs the same secret and an allowed address, and has to prove both.
    """
    settings = server.settings(port=PORT)
    settings.check_open()
    from vip_llava.serving.cluster.admission import AddressAllowList
    from vip_llava.serving.cluster.controller import LOOPBACK, create_controller
    from vip_llava.serving.cluster.registry import EXPIRY_SECONDS, WorkerRegistry
    from vip_llava.serving.middleware.server import listen, run

    allowed = tuple(allow_worker or LOOPBACK)
    expiry = EXPIRY_SECONDS if expiry is None else expiry
    if check:
        AddressAllowList(allowed)
        WorkerRegistry(dispatch, expiry=expiry)
        print_settings(settings, allow_worker=allowed, dispatch_method=dispatch, expiry=expiry)
        return
    secret = secret_from(secret_file, make=True)
    log_to_stderr(debug=debug)
    listener = listen(settings)
    app = create_controller(settings, secret, dispatch=dispatch, allowed=allowed, expiry=expiry)
    run(app, settings, listener=listener, on_ready=lambda address: note(f"listening on {address}"))
