"""What a worker tells a controller about itself, with the proof that it is one of the cluster's.

Used by every application that a controller may pass requests to, which may be a controller too; knows
no model and no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from vip_llava.serving.cluster.admission import STATUS_PATH
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.signing import CHALLENGE_HEADER, PROOF_HEADER, Secret
from vip_llava.serving.middleware.app_factory import shell_of
from vip_llava.serving.middleware.errors import Problem, error_schema
from vip_llava.serving.settings import ServerSettings

if TYPE_CHECKING:
    from vip_llava.serving.cluster.heartbeat import Joining

__all__ = ["Join", "add_status_route", "as_member", "stay_joined"]

_LONGEST_CHALLENGE = 128
_NOTHING = {"model_names": [], "speed": 0, "queue_length": 0}

Join = Callable[[Callable[[], WorkerStatus | None]], "Joining"]
"""Makes a place at a controller from a function that tells the status."""


def as_member(settings: ServerSettings, secret: Secret) -> ServerSettings:
    """The settings of a server behind a controller: its key is known, and rates are the controller's.

    All requests come from one client there, which asks for many.
    """
    keys = (*(key.get_secret_value() for key in settings.keys), secret.service_key)
    limits = settings.limits.model_copy(
        update={"rate": 0.0, "client_connections": settings.limits.connections}
    )
    return ServerSettings.model_validate(
        {**settings.model_dump(), "keys": keys, "limits": limits.model_dump()}
    )


def add_status_route(
    app: FastAPI, status: Callable[[], WorkerStatus | None], secret: Secret | None
) -> None:
    """Add /worker_get_status; with a secret it proves itself where it is challenged.

    status: None where there is nothing to be asked for.
    """

    @app.post(
        STATUS_PATH, tags=["original"], response_model=dict[str, Any], responses=error_schema(421)
    )
    async def worker_get_status(request: Request) -> Response:
        """The models of this worker, its speed, and how many requests it has."""
        found = status()
        body = json.dumps(_NOTHING if found is None else found.model_dump()).encode()
        challenge = request.headers.get(CHALLENGE_HEADER)
        fields = {}
        if challenge is not None and secret is not None:
            if not challenge.isalnum() or len(challenge) > _LONGEST_CHALLENGE:
                raise Problem(422, "the challenge is none", code="invalid_request")
            fields = {PROOF_HEADER: secret.proof(challenge, body)}
        return Response(body, media_type="application/json", headers=fields)


def stay_joined(app: FastAPI, place: Joining) -> None:
    """Let an application of `shell` have its place at a controller for as long as it can answer."""
    around = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(own: FastAPI) -> AsyncIterator[Any]:
        async with around(own) as state:
            task = asyncio.create_task(place.run(lambda: shell_of(app).not_ready() is None))
            try:
                yield state
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await place.leave()
                await place.aclose()

    app.router.lifespan_context = lifespan
