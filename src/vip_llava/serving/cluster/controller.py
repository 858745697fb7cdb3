"""The controller: workers register, clients ask, and each request goes to a worker of its model.

It has the original's routes and the API's main ones, with the same checks as every server here. It
loads no model and looks into a request only for the name of one. Its state is the registry alone: a
controller that was started anew knows its workers again within one heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vip_llava.serving.middleware.app_factory import (  # first: it says which extra is missing
    shell,
    shell_of,
)

# isort: split
import httpx
from fastapi import FastAPI, Request
from prometheus_client import Gauge
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from vip_llava.serving.api.upload_routes import Prepare, add_upload_routes
from vip_llava.serving.api.uploads import Uploads
from vip_llava.serving.cluster.admission import AddressList, Beat, Registration, ask_status
from vip_llava.serving.cluster.backends import chooser, closed, new_client
from vip_llava.serving.cluster.failover import Call, pass_on
from vip_llava.serving.cluster.model_routing import (
    ANY_ERROR,
    ANY_OBJECT,
    chosen_model,
    model_list,
    model_of,
)
from vip_llava.serving.cluster.proxy_routes import add_passing_routes
from vip_llava.serving.cluster.registry import EXPIRY_SECONDS, Registry
from vip_llava.serving.cluster.signing import ForgedError, Secret, Verifier
from vip_llava.serving.cluster.upload_inlining import with_uploads
from vip_llava.serving.cluster.worker_status import Join, add_status_route, stay_joined
from vip_llava.serving.middleware.errors import Problem, broken_rules
from vip_llava.serving.middleware.stream import unless_gone
from vip_llava.serving.settings import Limits, ServerSettings

__all__ = ["LOOPBACK", "Controller", "create_controller"]

LOOPBACK = ("127.0.0.0/8", "::1/128", "localhost")
"""Where workers may listen if nothing else is said."""

# Clients of the same machine must not use up what its workers need to be heard.
_MEMBER_PATHS = frozenset({"/register_worker", "/receive_heart_beat", "/unregister_worker"})
_PASSED, _MOST_PASSED = "x-vip-llava-passed", 8

log = logging.getLogger("vip_llava.serving")


@dataclass(slots=True)
class Controller:
    """The parts of one controller."""

    secret: Secret
    registry: Registry
    addresses: AddressList
    verifier: Verifier
    client: httpx.AsyncClient
    expiry: float

    async def sweep(self) -> None:
        """Drop silent workers, as long as the server runs."""
        while True:
            await asyncio.sleep(min(self.expiry / 4, 5.0))
            for member in self.registry.sweep():
                log.warning("worker %s dropped: %s", member.address, member.gone)

    async def admit(self, asked: Registration) -> None:
        """Take a worker in after it has proved itself; Problem if it has not."""
        address = self.addresses.check(asked.worker_name)
        status = await ask_status(self.client, address, self.secret)
        claimed = asked.worker_status
        if claimed is not None and set(claimed.model_names) != set(status.model_names):
            raise Problem(
                409,
                "the worker was to be registered for other models than it serves",
                code="wrong_models",
                param="worker_status.model_names",
            )
        self.registry.add(address, status, checked=asked.check_heart_beat)
        log.info("worker %s registered: %s", address, ", ".join(status.model_names))

    async def refresh(self) -> None:
        """Ask every worker anew; impostors are dropped, and who says nothing gets nothing new."""

        async def one(address: str) -> None:
            try:
                self.registry.add(address, await ask_status(self.client, address, self.secret))
            except Problem as problem:
                log.warning("worker %s: %s", address, problem.message)
                if problem.status == 403:
                    self.registry.drop(address, problem.message)
                else:  # it may be busy, and what it answers may go on
                    self.registry.suspect(address)

        await asyncio.gather(*(one(member.address) for member in self.registry.everyone))


def create_controller(
    settings: ServerSettings,
    secret: Secret,
    *,
    dispatch: str = "shortest_queue",
    allowed: Sequence[str] = LOOPBACK,
    expiry: float = EXPIRY_SECONDS,
    expected: Iterable[str] = (),
    join: Join | None = None,
) -> FastAPI:
    """The application of a controller.

    secret: shared with the workers. dispatch: "shortest_queue" or "lottery". allowed: networks and
    names at which workers may listen. expiry: seconds of silence after which a worker is dropped.
    expected: models whose workers are on their way; asking for them is too early and no mistake.
    join: makes a place at another controller, for which this one is a worker.
    Raises ServingError for an unknown dispatch or an address that is none.
    """
    if settings.keys:
        # Workers knock with the key made of the secret; signatures decide what they may.
        keys = (*(key.get_secret_value() for key in settings.keys), secret.service_key)
        settings = ServerSettings.model_validate({**settings.model_dump(), "keys": keys})
    parts = Controller(
        secret=secret,
        registry=Registry(dispatch, expiry=expiry),
        addresses=AddressList(allowed),
        verifier=Verifier(secret),
        client=new_client(settings.limits.answer_seconds),
        expiry=expiry,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.ensure_future(parts.sweep())
        yield
        sweeper.cancel()
        await closed(parts.client)

    app = shell(settings, title="vip-llava controller", lifespan=lifespan, own_rates=_MEMBER_PATHS)
    app.state.controller = parts
    for model in expected:
        parts.registry.expect(model)
    shell_of(app).ready_when(lambda: None if parts.registry.members else "no worker is registered")
    workers = Gauge("vip_llava_workers", "Workers.", registry=shell_of(app).metrics.registry)
    workers.set_function(lambda: len(parts.registry.members))
    _add_worker_routes(app, parts)
    _add_list_routes(app, parts)
    # All workers as if they were one.
    add_status_route(app, parts.registry.status, secret)
    uploads = Uploads(settings.limits)
    add_upload_routes(app, uploads, _preparing(settings.limits.preparing), settings.limits)
    _add_passing_routes(app, parts, uploads, settings.limits)
    if join is not None:
        stay_joined(app, join(parts.registry.status))
    return app


def _add_worker_routes(app: FastAPI, parts: Controller) -> None:
    """What workers ask; each of it signed."""

    async def signed(request: Request, shape: type[BaseModel]) -> Any:
        body = await request.body()
        try:
            parts.verifier.check(request.method, request.url.path, request.headers, body)
        except ForgedError as error:
            raise Problem(403, str(error), code="not_a_member") from None
        try:
            return shape.model_validate_json(body)
        except ValidationError as error:
            raise broken_rules(error.errors()) from None

    @app.post("/register_worker", tags=["workers"], openapi_extra=ANY_OBJECT, responses=ANY_ERROR)
    async def register_worker(request: Request) -> dict[str, Any]:
        """A worker joins. The answer says how often it has to be heard of."""
        await parts.admit(await signed(request, Registration))
        return {"exist": True, "heart_beat_seconds": parts.expiry / 3}

    @app.post(
        "/receive_heart_beat", tags=["workers"], openapi_extra=ANY_OBJECT, responses=ANY_ERROR
    )
    async def receive_heart_beat(request: Request) -> dict[str, bool]:
        """A worker is alive; `exist` false tells it to join anew."""
        beat: Beat = await signed(request, Beat)
        return {"exist": parts.registry.beat(beat.worker_name, beat.queue_length)}

    @app.post("/unregister_worker", tags=["workers"], openapi_extra=ANY_OBJECT, responses=ANY_ERROR)
    async def unregister_worker(request: Request) -> dict[str, bool]:
        """A worker leaves: it gets nothing new, and ends what it has."""
        beat: Beat = await signed(request, Beat)
        return {"exist": parts.registry.leave(beat.worker_name)}


def _add_list_routes(app: FastAPI, parts: Controller) -> None:
    """What there is, in the original's shapes and in the API's."""
    refreshing = asyncio.Lock()

    @app.post("/refresh_all_workers", tags=["original"], responses=ANY_ERROR)
    async def refresh_all_workers() -> None:
        """Ask all workers anew, so that the list of models is of now."""
        async with refreshing:
            await parts.refresh()

    @app.post("/list_models", tags=["original"], responses=ANY_ERROR)
    async def list_models() -> dict[str, list[str]]:
        """The names of all models."""
        return {"models": parts.registry.models()}

    @app.post(
        "/get_worker_address", tags=["original"], openapi_extra=ANY_OBJECT, responses=ANY_ERROR
    )
    async def get_worker_address(request: Request) -> dict[str, str]:
        """Where to ask for a model: here, since requests are passed on; "" if nobody serves it."""
        name = await model_of(await request.body())
        found = parts.registry.pick(name) if name else None
        return {"address": str(request.base_url).rstrip("/") if found else ""}

    @app.get("/v1/models", tags=["api"], responses=ANY_ERROR)
    async def models() -> dict[str, Any]:
        """The models that can be asked for."""
        return model_list(parts.registry.models())


def _preparing(together: int) -> Prepare:
    """Work on images in threads, so much at a time."""
    places = asyncio.Semaphore(together)

    async def prepare(work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        async with places:
            return await asyncio.to_thread(work)

    return prepare


def _add_passing_routes(app: FastAPI, parts: Controller, uploads: Uploads, limits: Limits) -> None:
    """What workers answer."""

    async def passed(request: Request, legacy: bool) -> Response:
        body = await request.body()
        name = _chosen(await model_of(body), parts.registry)
        if not legacy:
            owner = request.state.passage.client
            body = await with_uploads(body, owner, uploads, limits)
        kept = {"content-type": request.headers.get("content-type", "application/json")}
        fields = {
            **kept,
            "x-request-id": request.state.request_id,
            _PASSED: _passed_so_often(request.headers.get(_PASSED, "0")),
        }
        call = Call(request.url.path, body, fields, legacy)
        key = {"authorization": f"Bearer {parts.secret.service_key}"}
        work = pass_on(call, chooser(name, parts.registry, parts.client, key))
        return await unless_gone(request.receive, work)

    add_passing_routes(app, passed)


def _passed_so_often(before: str) -> str:
    """The count of controllers that a request has passed; Problem 502 where they go in a circle."""
    count = int(before) + 1 if before.isdecimal() and len(before) < 3 else 1
    if count > _MOST_PASSED:
        raise Problem(502, "controllers are joined in a circle", code="worker_failed")
    return str(count)


def _chosen(name: str | None, registry: Registry) -> str:
    """The model that is asked for. Problem 503 for one whose worker is away, 404 for unknown ones."""
    known = registry.models()
    if name is not None and name not in known and registry.awaited(name):
        raise Problem(503, "no worker for this model is there now", code="no_worker", retry_after=5)
    return chosen_model(name, known)
