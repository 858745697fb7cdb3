"""Running an application of this package: the socket, the signals and the end.

A stop lets running answers end within their time and refuses new ones; a second signal stops at
once. Works in the main thread of a process and, for tests and pages, in any other.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from vip_llava.errors import ServingError
from vip_llava.serving.middleware.app_factory import shell_of
from vip_llava.serving.middleware.connections import protocol_with, quiet_config
from vip_llava.serving.settings import ServerSettings

__all__ = ["background", "listen", "run", "stop"]

_START_SECONDS = 30
log = logging.getLogger("vip_llava.serving")


class _Server(uvicorn.Server):
    """uvicorn's server that tells the application when it is being stopped."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def stop(self) -> None:
        """Begin to stop; may be called by any thread."""
        shell_of(self._app).draining = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own way, which raises the signal anew at the end: a drained stop is a
        # success. The second signal does not wait.
        name = signal.Signals(sig).name
        if self.should_exit:
            log.warning("%s again: stopping at once", name)
            self.force_exit = True
        else:
            log.info("%s: running answers may end, new ones are refused", name)
        self.stop()


def stop(app: FastAPI) -> None:
    """Begin to stop the server that runs this application; may be called by any thread."""
    server = getattr(app.state, "server", None)
    if server is not None:
        server.stop()


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens as the settings say; its port is known before anything is loaded.

    ServingError where the address is taken, not this machine's, or open without a key.
    """
    settings.check_open()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host.strip("[]"), settings.port))
        found.listen(1024)
        found.setblocking(False)
    except OSError as error:
        found.close()
        raise ServingError(
            f"can't listen on {settings.host} port {settings.port}: {error.strerror or error}"
        ) from None
    return found


def run(
    app: FastAPI,
    settings: ServerSettings,
    *,
    listener: socket.socket | None = None,
    on_ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve until a signal says stop. `on_ready` gets the address once requests are taken."""
    with contextlib.closing(listener or listen(settings)) as found:
        address = _address(found)
        server = _made(app, settings, lambda: on_ready(address))
        server.run(sockets=[found])


@contextlib.contextmanager
def background(app: FastAPI, settings: ServerSettings) -> Iterator[str]:
    """Serve in a thread as long as the context lasts; gives the address, http://host:port."""
    ready = threading.Event()
    with contextlib.closing(listen(settings)) as found:
        server = _made(app, settings, ready.set)
        thread = threading.Thread(target=server.run, args=([found],), name="vip-llava-http")
        thread.start()
        try:
            if not ready.wait(_START_SECONDS):
                raise ServingError(f"the server did not start within {_START_SECONDS} seconds")
            yield _address(found)
        finally:
            server.stop()
            thread.join()


def _made(app: FastAPI, settings: ServerSettings, ready: Callable[[], None]) -> _Server:
    config = uvicorn.Config(
        app,
        http=protocol_with(settings.limits),
        timeout_keep_alive=max(1, int(settings.limits.header_seconds)),
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
        **quiet_config(),
    )
    server = _Server(config, app, ready)
    app.state.server = server
    return server


def _address(found: socket.socket) -> str:
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
