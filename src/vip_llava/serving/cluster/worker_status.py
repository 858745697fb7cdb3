"""What a worker needs behind a controller: its status route with a proof, and its registration.

It does not know models or engines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from pydantic import SecretStr
from starlette.responses import Response

from vip_llava.serving.cluster.admission import STATUS_PATH
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.signing import CHALLENGE_HEADER, PROOF_HEADER, Secret
from vip_llava.serving.middleware.app_factory import context_of
from vip_llava.serving.middleware.errors import ApiError, error_responses
from vip_llava.serving.settings import ServerSettings

if TYPE_CHECKING:
    from vip_llava.serving.cluster.heartbeat import HeartbeatClient

__all__ = ["add_status_route", "keep_registered", "worker_settings"]

_MAX_CHALLENGE = 128


def worker_settings(settings: ServerSettings, secret: Secret) -> ServerSettings:
    """Settings of a server behind a controller: it accepts the service key, without rate limits.

    All its requests come from one client, the controller, which limits rates itself.
    """
    keys = (*settings.keys, SecretStr(secret.service_key))
    unlimited = {"rate": 0.0, "client_connections": settings.limits.connections}
    limits = settings.limits.model_copy(update=unlimited)
    return settings.model_copy(update={"keys": keys, "limits": limits})


def add_status_route(
    app: FastAPI, status: Callable[[], WorkerStatus], secret: Secret | None
) -> None:
    """Add /worker_get_status; with a secret it answers challenges with a proof."""

    @app.post(
        STATUS_PATH, tags=["original"], response_model=WorkerStatus, responses=error_responses(421)
    )
    async def worker_get_status(request: Request) -> Response:
        """The models of this worker, its speed and its number of requests."""
        body = status().model_dump_json().encode()
        challenge = request.headers.get(CHALLENGE_HEADER)
        headers = {}
        if challenge is not None and secret is not None:
            if not challenge.isalnum() or len(challenge) > _MAX_CHALLENGE:
                raise ApiError(422, "malformed challenge", code="invalid_request")
            headers = {PROOF_HEADER: secret.proof(challenge, body)}
        return Response(body, media_type="application/json", headers=headers)


def keep_registered(app: FastAPI, client: HeartbeatClient) -> None:
    """Run the heartbeat client within the lifespan of the application, while it is ready."""
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(own: FastAPI) -> AsyncIterator[Any]:
        async with inner(own) as state:
            task = asyncio.create_task(client.run(lambda: context_of(app).not_ready() is None))
            try:
                yield state
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await client.unregister()
                await client.aclose()

    app.router.lifespan_context = lifespan
