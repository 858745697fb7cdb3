"""A worker's side of registration: join a controller, show signs of life, leave.

Whatever the controller does - not there yet, started anew, away for an hour - the worker goes on
answering and tries again. Knows no model and no routes.
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

__all__ = ["HEART_BEAT_SECONDS", "Joining", "base_address"]

HEART_BEAT_SECONDS = 15.0
"""Between two signs of life, as in the original; a controller may want more of them."""

_FIRST_RETRY, _LAST_RETRY = 0.25, 10.0
_LOOK_SECONDS = 0.2
_SECONDS = 10.0  # longer than the controller's own asking back

log = logging.getLogger("vip_llava.serving")


class Joining:
    """One worker at one controller. `run` it beside the server; then `leave` and `aclose`."""

    def __init__(
        self,
        controller: str,
        address: str,
        secret: Secret,
        status: Callable[[], WorkerStatus | None],
        *,
        interval: float = HEART_BEAT_SECONDS,
    ) -> None:
        """controller and address: of both, as `http://host:port`. interval: seconds, at most.

        Raises ServingError for an address that is none.
        """
        self._controller = base_address(controller)
        self._address = base_address(address)
        self._secret, self._status, self._interval = secret, status, interval
        self._client = httpx.AsyncClient(timeout=_SECONDS, trust_env=False, follow_redirects=False)
        self._told = ""
        self.joined = False
        self._registered: list[str] = []

    async def run(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Join and stay, for as long as the worker is `ready`; ends only by being cancelled."""
        retry = _FIRST_RETRY
        while True:
            if not ready():
                await self.leave()
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            try:
                await self.once()
            except ServingError as error:
                self._tell(str(error))
                await asyncio.sleep(retry)
                retry = min(2 * retry, _LAST_RETRY, self._interval)
                continue
            retry = _FIRST_RETRY
            await self._pause(ready)

    async def _pause(self, ready: Callable[[], bool]) -> None:
        """Until the next sign of life is due, or the worker can't answer any more."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._interval
        while ready() and loop.time() < end:
            await asyncio.sleep(min(_LOOK_SECONDS, max(end - loop.time(), 0.01)))

    async def once(self) -> None:
        """Join, or show a sign of life and join where it is not known. ServingError if that fails."""
        status = self._status()
        if status is None:
            raise ServingError("there is nothing that could be registered")
        if self.joined and status.model_names == self._registered:
            beat = {"worker_name": self._address, "queue_length": status.queue_length}
            self.joined = bool((await self._ask("/receive_heart_beat", beat)).get("exist"))
            if self.joined:
                return
        registration = {"worker_name": self._address, "check_heart_beat": True}
        answer = await self._ask(
            "/register_worker", {**registration, "worker_status": status.model_dump()}
        )
        wanted = answer.get("heart_beat_seconds")
        if isinstance(wanted, int | float) and 0.05 <= wanted < self._interval:
            self._interval = float(wanted)
        self.joined, self._told = True, ""
        self._registered = status.model_names
        log.info("registered at %s as %s", self._controller, self._address)

    async def leave(self) -> None:
        """Say good-bye, if there is anyone to hear it; the worker gets nothing new afterwards."""
        try:
            if self.joined:
                self.joined = False
                await self._ask("/unregister_worker", {"worker_name": self._address})
        except ServingError as error:
            log.info("leaving: %s", error)

    async def aclose(self) -> None:
        """Close the connection without a word."""
        await self._client.aclose()

    async def _ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        body = httpx.Request("POST", self._controller, json=content).content
        fields = {
            "content-type": "application/json",
            "authorization": f"Bearer {self._secret.service_key}",
            **self._secret.sign("POST", path, body),
        }
        try:
            response = await self._client.post(
                self._controller + path, content=body, headers=fields
            )
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            self.joined = False
            reason = type(error).__name__
            raise ServingError(f"no controller answers at {self._controller} ({reason})") from error
        if response.status_code != 200 or not isinstance(answer, dict):
            self.joined = False
            raise ServingError(
                f"the controller at {self._controller} refuses: {_reason(answer, response)}"
            )
        return answer

    def _tell(self, text: str) -> None:
        """Into the log, once for each trouble."""
        if text != self._told:
            log.warning("%s; trying again", text)
        self._told = text


def base_address(text: str) -> str:
    """`scheme://host:port` of it; ServingError where something else was written."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ServingError(
            f"{text!r} is no address of a server; write it like http://10.1.2.3:21001"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _reason(answer: Any, response: httpx.Response) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else f"HTTP {response.status_code}"
