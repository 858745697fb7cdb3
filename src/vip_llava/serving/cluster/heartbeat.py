"""`HeartbeatClient`: a worker's side of registration - register, send heartbeats, unregister.

Whether the controller is down, restarted or unreachable, the worker goes on serving and retries.
It does not know models or routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from vip_llava.errors import ServingError
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.signing import Secret

__all__ = ["HEARTBEAT_SECONDS", "HeartbeatClient", "parse_base_url"]

HEARTBEAT_SECONDS = 15.0
"""The default interval, as in the original; a controller may ask for a shorter one."""

_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.25, 10.0
_POLL_SECONDS = 0.2
_TIMEOUT_SECONDS = 10.0  # longer than the controller takes to call back

log = logging.getLogger("vip_llava.serving")


class HeartbeatClient:
    """One worker at one controller. `run` it beside the server; then `unregister` and `aclose`."""

    def __init__(
        self,
        controller: str,
        address: str,
        secret: Secret,
        status: Callable[[], WorkerStatus],
        *,
        interval: float = HEARTBEAT_SECONDS,
    ) -> None:
        """
        Args:
            controller, address: URLs of controller and worker, http://host:port.
            interval: the longest time between two heartbeats, in seconds.

        Raises:
            ServingError: an invalid URL.
        """
        self._controller = parse_base_url(controller)
        self._address = parse_base_url(address)
        self._secret, self._status, self._interval = secret, status, interval
        timeout = _TIMEOUT_SECONDS
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=False)
        self._logged = ""
        self._registered_models: list[str] = []
        self.registered = False

    async def run(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Register and send heartbeats while the worker is `ready`; runs until cancelled."""
        retry = _MIN_RETRY_SECONDS
        while True:
            if not ready():
                await self.unregister()
                await asyncio.sleep(_POLL_SECONDS)
                continue
            try:
                await self.beat()
            except ServingError as error:
                self._log_once(str(error))
                await asyncio.sleep(retry)
                retry = min(2 * retry, _MAX_RETRY_SECONDS, self._interval)
                continue
            retry = _MIN_RETRY_SECONDS
            await self._sleep(ready)

    async def _sleep(self, ready: Callable[[], bool]) -> None:
        """Wait for the next heartbeat, or until the worker is not ready any more."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._interval
        while ready() and loop.time() < end:
            await asyncio.sleep(min(_POLL_SECONDS, max(end - loop.time(), 0.01)))

    async def beat(self) -> None:
        """Send one heartbeat, or register if the controller does not know this worker.

        Raises:
            ServingError: the controller does not respond or refuses.
        """
        status = self._status()
        if self.registered and status.model_names == self._registered_models:
            beat = {"worker_name": self._address, "queue_length": status.queue_length}
            self.registered = bool((await self._post("/receive_heart_beat", beat)).get("exist"))
            if self.registered:
                return
        registration = {"worker_name": self._address, "check_heart_beat": True}
        answer = await self._post(
            "/register_worker", {**registration, "worker_status": status.model_dump()}
        )
        wanted = answer.get("heart_beat_seconds")
        if isinstance(wanted, int | float) and 0.05 <= wanted < self._interval:
            self._interval = float(wanted)
        self.registered, self._logged = True, ""
        self._registered_models = status.model_names
        log.info("registered at %s as %s", self._controller, self._address)

    async def unregister(self) -> None:
        """Unregister if registered; a controller that does not respond is ignored."""
        try:
            if self.registered:
                self.registered = False
                await self._post("/unregister_worker", {"worker_name": self._address})
        except ServingError as error:
            log.info("could not unregister: %s", error)

    async def aclose(self) -> None:
        """Close the connection without unregistering."""
        await self._client.aclose()

    async def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        body = httpx.Request("POST", self._controller, json=content).content
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {self._secret.service_key}",
            **self._secret.sign("POST", path, body),
        }
        try:
            response = await self._client.post(
                self._controller + path, content=body, headers=headers
            )
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            self.registered = False
            reason = type(error).__name__
            raise ServingError(
                f"the controller at {self._controller} does not respond ({reason})"
            ) from error
        if response.status_code != 200 or not isinstance(answer, dict):
            self.registered = False
            raise ServingError(
                f"the controller at {self._controller} refuses: {_reason(answer, response)}"
            )
        return answer

    def _log_once(self, text: str) -> None:
        """Log a problem when it starts, not on every retry."""
        if text != self._logged:
            log.warning("%s; retrying", text)
        self._logged = text


def parse_base_url(text: str) -> str:
    """The URL as `scheme://host:port`; ServingError if it is anything else."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ServingError(f"{text!r} must be the URL of a server, like http://10.1.2.3:21001")
    return f"{parts.scheme}://{parts.netloc}"


def _reason(answer: Any, response: httpx.Response) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else f"HTTP {response.status_code}"
