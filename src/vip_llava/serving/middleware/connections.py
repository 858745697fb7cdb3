"""uvicorn's HTTP/1.1 protocol with limits for clients that send nothing or read nothing.

It knows sockets and time, not requests. A connection aborted here never reaches the application,
except that a response in progress sees a disconnect.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from vip_llava.serving.settings import Limits

__all__ = ["limited_protocol", "uvicorn_options"]


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """A subclass of uvicorn's HTTP/1.1 protocol that enforces these limits."""
    per_address: dict[str, int] = {}

    class LimitedProtocol(H11Protocol):
        """Limits connections per address, the time for request headers and the time unread."""

        _counted: str | None = None
        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            address = self.client[0] if self.client else ""
            self._counted = address
            per_address[address] = per_address.get(address, 0) + 1
            if (
                len(self.connections) > limits.connections
                or per_address[address] > limits.client_connections
            ):
                transport.abort()
                return
            self._start_header_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._counted is not None:
                per_address[self._counted] -= 1
                if not per_address[self._counted]:
                    del per_address[self._counted]
                self._counted = None
            self._stop_header_timer()
            self.resume_writing()
            super().connection_lost(exc)
            self._unset_keepalive_if_required()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._stop_header_timer()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:
                self._start_header_timer()
            # The rest of the write buffer must drain even if the connection is being closed.
            self._start_write_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start_write_timer()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def _start_header_timer(self) -> None:
            self._stop_header_timer()
            self._header_timer = self.loop.call_later(limits.header_seconds, self._abort)

        def _stop_header_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _start_write_timer(self) -> None:
            if self._write_timer is None and self.transport.get_write_buffer_size():
                self._write_timer = self.loop.call_later(limits.write_seconds, self._check_drained)

        def _check_drained(self) -> None:
            self._write_timer = None
            if self.transport.get_write_buffer_size():
                self._abort()

        def _abort(self) -> None:
            """Drop the connection and its unsent data; a regular close would wait for the client."""
            self.transport.abort()

    return LimitedProtocol


def uvicorn_options() -> dict[str, Any]:
    """uvicorn settings without an access log and without the server's name in responses."""
    return {
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "log_config": None,
        "ws": "none",
        "lifespan": "on",
        "h11_max_incomplete_event_size": 64 * 1024,  # of a request's headers
    }
