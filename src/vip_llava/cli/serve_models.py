"""`vip-llava serve --models a,b`: a controller in this process and one worker process per model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vip_llava.cli.terminal import note
from vip_llava.errors import ServingError

if TYPE_CHECKING:
    from vip_llava.cli.model_options import ModelOptions
    from vip_llava.serving.settings import ServerSettings

__all__ = ["serve_models", "worker_arguments"]

_MARGIN_SECONDS = 5.0


def serve_models(
    models: dict[str, str | None], model: ModelOptions, settings: ServerSettings
) -> None:
    """Serve models by name until a signal; None is the default model.

    model: the options with which all of them are loaded. Raises ServingError once no worker is
    left, with the reason.
    """
    from vip_llava.serving.cluster.controller import create_controller
    from vip_llava.serving.cluster.signing import Secret
    from vip_llava.serving.cluster.worker_processes import WorkerProcesses
    from vip_llava.serving.middleware.server import listen, run, stop

    secret = Secret.new()
    listener = listen(settings)
    app = create_controller(settings, secret, expected=models)
    workers = WorkerProcesses(lambda: stop(app))
    controller = _own_address(listener.getsockname()[:2])
    for called, name in models.items():
        place = ["--models", f"{called}={name or 'default'}", "--controller", controller]
        workers.add(called, [*place, *worker_arguments(model, settings)], secret)

    def on_ready(address: str) -> None:
        note(f"listening on {address}")
        workers.start()

    try:
        run(app, settings, listener=listener, on_ready=on_ready)
    finally:
        workers.stop(settings.drain_seconds + _MARGIN_SECONDS)
    if len(workers.reasons) == len(workers.workers):
        raise ServingError(f"no worker is left: {workers.reasons[0]}")


def _own_address(listening: tuple[str, int]) -> str:
    """The controller's address for workers on this machine."""
    host, port = listening
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def worker_arguments(model: ModelOptions, settings: ServerSettings) -> list[str]:
    """The arguments of a worker with the model options and limits of this server."""
    from vip_llava.serving.settings import Limits

    found = ["--port", "0", "--drain", f"{settings.drain_seconds:g}", *model.arguments()]
    defaults = Limits()
    for name, value in settings.limits.model_dump().items():
        if value != getattr(defaults, name):
            found += ["--limit", f"{name}={value}"]
    for host in settings.fetch_hosts:
        found += ["--fetch-host", host]
    return [*found, *(["--log-content"] if settings.log_content else [])]
