"""Runs an application with uvicorn: the listening socket, the signals, the graceful stop.

A stop refuses new requests and lets running ones finish within `drain_seconds`; a second signal
stops at once. It works in the main thread and, for tests and pages, in any other.
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
from vip_llava.serving.middleware.app_factory import context_of
from vip_llava.serving.middleware.connections import limited_protocol, uvicorn_options
from vip_llava.serving.settings import ServerSettings

__all__ = ["background", "listen", "run", "stop"]

_START_SECONDS = 30
log = logging.getLogger("vip_llava.serving")


class _Server(uvicorn.Server):
    """uvicorn's server; it tells the application when it starts to drain."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def stop(self) -> None:
        """Start to drain; thread-safe."""
        context_of(self._app).draining = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler raises the signal again at the end, but a drained stop is a success.
        name = signal.Signals(sig).name
        if self.should_exit:
            log.warning("%s again: stopping at once", name)
            self.force_exit = True
        else:
            log.info("%s: draining; new requests are refused", name)
        self.stop()


def stop(app: FastAPI) -> None:
    """Start to drain the server that runs this application; thread-safe."""
    server = getattr(app.state, "server", None)
    if server is not None:
        server.stop()


def listen(settings: ServerSettings) -> socket.socket:
    """A listening socket, opened before any model is loaded, so that a taken port fails at once.

    Raises:
        ServingError: the address is in use or not this machine's, or it is open without a key.
    """
    settings.check_open()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ServingError(
            f"can't listen on {settings.host} port {settings.port}: {error.strerror or error}"
        ) from None
    return listener


def run(
    app: FastAPI,
    settings: ServerSettings,
    *,
    listener: socket.socket | None = None,
    on_ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until a signal. `on_ready` receives the server's URL once it accepts requests."""
    with contextlib.closing(listener or listen(settings)) as open_socket:
        url = _url(open_socket)
        _make_server(app, settings, lambda: on_ready(url)).run(sockets=[open_socket])


@contextlib.contextmanager
def background(app: FastAPI, settings: ServerSettings) -> Iterator[str]:
    """Serve in a thread for the duration of the context; yields the URL, http://host:port."""
    ready = threading.Event()
    with contextlib.closing(listen(settings)) as open_socket:
        server = _make_server(app, settings, ready.set)
        thread = threading.Thread(target=server.run, args=([open_socket],), name="vip-llava-http")
        thread.start()
        try:
            if not ready.wait(_START_SECONDS):
                raise ServingError(f"the server did not start within {_START_SECONDS} seconds")
            yield _url(open_socket)
        finally:
            server.stop()
            thread.join()


def _make_server(app: FastAPI, settings: ServerSettings, on_ready: Callable[[], None]) -> _Server:
    config = uvicorn.Config(
        app,
        http=limited_protocol(settings.limits),
        timeout_keep_alive=max(1, int(settings.limits.header_seconds)),
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
        **uvicorn_options(),
    )
    server = _Server(config, app, on_ready)
    app.state.server = server
    return server


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
