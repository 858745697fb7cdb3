"""Connections that end: uvicorn's protocol with limits for clients that send or read nothing.

It knows sockets and time, not what is asked. What it closes here never reaches the application; an
answer that was under way is told so as a disconnect.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from vip_llava.serving.settings import Limits

__all__ = ["protocol_with"]


def protocol_with(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol under these limits, as a class of its own."""
    per_address: dict[str, int] = {}

    class LimitedProtocol(H11Protocol):
        """A request's head has to arrive in time, answers have to be read, and clients are counted."""

        _counted: str | None = None
        _head: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

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
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._counted is not None:
                per_address[self._counted] -= 1
                if not per_address[self._counted]:
                    del per_address[self._counted]
                self._counted = None
            self._clear_head()
            self.resume_writing()
            super().connection_lost(exc)
            self._unset_keepalive_if_required()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._clear_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:
                self._expect_head()
            # What is left in the buffer has to go, also where the connection is being closed.
            self._expect_reading()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_reading()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _expect_head(self) -> None:
            self._clear_head()
            self._head = self.loop.call_later(limits.header_seconds, self._end)

        def _clear_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _expect_reading(self) -> None:
            if self._unread is None and self.transport.get_write_buffer_size():
                self._unread = self.loop.call_later(limits.write_seconds, self._check_reading)

        def _check_reading(self) -> None:
            self._unread = None
            if self.transport.get_write_buffer_size():
                self._end()

        def _end(self) -> None:
            """Drop the connection with whatever is unsent; closing would wait for the client."""
            self.transport.abort()

    return LimitedProtocol


def quiet_config() -> dict[str, Any]:
    """Settings of uvicorn that say nothing of clients: no access log, no name of the software."""
    return {
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "log_config": None,
        "ws": "none",
        "lifespan": "on",
        # A head larger than this is no request of ours.
        "h11_max_incomplete_event_size": 64 * 1024,
    }
