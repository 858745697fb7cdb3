"""The controller: workers register here, and it forwards each request to a worker of its model.

It has the original's routes and the API's main ones. It loads no model and reads of a request only
the model name and upload URLs. Its only state is the registry: after a restart it knows all its
workers again within one heartbeat interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vip_llava.serving.middleware.app_factory import (  # first: it names the missing extra
    context_of,
    create_base_app,
)

# isort: split
import httpx
from fastapi import FastAPI, Request
from prometheus_client import Gauge
from pydantic import BaseModel, SecretStr, ValidationError
from starlette.responses import Response

from vip_llava.serving.api.upload_routes import Prepare, add_upload_routes
from vip_llava.serving.api.uploads import UploadStore
from vip_llava.serving.cluster.admission import (
    AddressAllowList,
    Heartbeat,
    Registration,
    fetch_worker_status,
)
from vip_llava.serving.cluster.failover import ProxyRequest, forward
from vip_llava.serving.cluster.model_routing import (
    ERROR_RESPONSES,
    JSON_OBJECT_BODY,
    model_list,
    requested_model,
    resolve_model,
)
from vip_llava.serving.cluster.proxy_routes import add_proxy_routes
from vip_llava.serving.cluster.registry import EXPIRY_SECONDS, WorkerRegistry
from vip_llava.serving.cluster.signing import Secret, SignatureError, SignatureVerifier
from vip_llava.serving.cluster.upload_inlining import inline_uploads
from vip_llava.serving.cluster.worker_connections import make_client, worker_picker
from vip_llava.serving.middleware.errors import ApiError, validation_error
from vip_llava.serving.middleware.stream import cancel_on_disconnect
from vip_llava.serving.settings import Limits, ServerSettings

__all__ = ["LOOPBACK", "Controller", "create_controller"]

LOOPBACK = ("127.0.0.0/8", "::1/128", "localhost")
"""The default of where workers may listen."""

# Workers on the same machine as clients must not share the clients' rate limit.
_WORKER_PATHS = frozenset({"/register_worker", "/receive_heart_beat", "/unregister_worker"})

log = logging.getLogger("vip_llava.serving")


@dataclass(slots=True)
class Controller:
    """The components of one controller."""

    secret: Secret
    registry: WorkerRegistry
    addresses: AddressAllowList
    verifier: SignatureVerifier
    client: httpx.AsyncClient
    expiry: float

    async def drop_expired_workers(self) -> None:
        """Drop workers without heartbeats for as long as the server runs."""
        while True:
            await asyncio.sleep(min(self.expiry / 4, 5.0))
            for worker in self.registry.drop_expired():
                log.warning("worker %s dropped: %s", worker.address, worker.drop_reason)

    async def admit(self, registration: Registration) -> None:
        """Register a worker once it has proved to know the secret; ApiError if it has not."""
        address = self.addresses.check(registration.worker_name)
        status = await fetch_worker_status(self.client, address, self.secret)
        claimed = registration.worker_status
        if claimed is not None and set(claimed.model_names) != set(status.model_names):
            raise ApiError(
                409,
                "the worker serves other models than the registration names",
                code="wrong_models",
                param="worker_status.model_names",
            )
        self.registry.add(address, status, expires=registration.check_heart_beat)
        log.info("worker %s registered: %s", address, ", ".join(status.model_names))

    async def refresh(self) -> None:
        """Fetch the status of all workers: drop impostors, suspect those that do not respond."""

        async def refresh_one(address: str) -> None:
            try:
                status = await fetch_worker_status(self.client, address, self.secret)
                self.registry.add(address, status)
            except ApiError as error:
                log.warning("worker %s: %s", address, error.message)
                if error.status == 403:
                    self.registry.drop(address, error.message)
                else:  # it may be busy, so its running requests go on
                    self.registry.suspect(address)

        await asyncio.gather(*(refresh_one(each.address) for each in self.registry.registered))


def create_controller(
    settings: ServerSettings,
    secret: Secret,
    *,
    dispatch: str = "shortest_queue",
    allowed: Sequence[str] = LOOPBACK,
    expiry: float = EXPIRY_SECONDS,
    expected: Iterable[str] = (),
) -> FastAPI:
    """The application of a controller.

    Args:
        secret: shared with the workers.
        dispatch: "shortest_queue" or "lottery".
        allowed: networks and host names at which workers may listen.
        expiry: seconds without a heartbeat after which a worker is dropped.
        expected: models whose workers are starting; requests for them get 503 instead of 404.

    Raises:
        ServingError: an unknown dispatch method or an invalid entry of `allowed`.
    """
    if settings.keys:
        # Workers authenticate with a key derived from the secret; signatures authorize them.
        keys = (*settings.keys, SecretStr(secret.service_key))
        settings = settings.model_copy(update={"keys": keys})
    controller = Controller(
        secret=secret,
        registry=WorkerRegistry(dispatch, expiry=expiry),
        addresses=AddressAllowList(allowed),
        verifier=SignatureVerifier(secret),
        client=make_client(settings.limits.answer_seconds),
        expiry=expiry,
    )
    registry = controller.registry

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.ensure_future(controller.drop_expired_workers())
        yield
        task.cancel()
        with contextlib.suppress(httpx.HTTPError, OSError):
            await controller.client.aclose()

    app = create_base_app(
        settings,
        title="vip-llava controller",
        lifespan=lifespan,
        separate_rate_paths=_WORKER_PATHS,
    )
    app.state.controller = controller
    for model in expected:
        registry.expect(model)
    context = context_of(app)
    context.add_readiness_check(lambda: None if registry.available else "no worker is registered")
    workers = Gauge("vip_llava_workers", "Available workers.", registry=context.metrics.registry)
    workers.set_function(lambda: len(registry.available))
    _add_worker_routes(app, controller)
    _add_list_routes(app, controller)
    uploads = UploadStore(settings.limits)
    add_upload_routes(app, uploads, _in_threads(settings.limits.preparing), settings.limits)
    _add_proxy_routes(app, controller, uploads, settings.limits)
    return app


def _add_worker_routes(app: FastAPI, controller: Controller) -> None:
    """The signed routes for workers."""

    async def verified(request: Request, model: type[BaseModel]) -> Any:
        body = await request.body()
        try:
            controller.verifier.check(request.method, request.url.path, request.headers, body)
        except SignatureError as error:
            raise ApiError(403, str(error), code="not_a_member") from None
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise validation_error(error.errors()) from None

    options: dict[str, Any] = {
        "tags": ["workers"],
        "openapi_extra": JSON_OBJECT_BODY,
        "responses": ERROR_RESPONSES,
    }

    @app.post("/register_worker", **options)
    async def register_worker(request: Request) -> dict[str, Any]:
        """Register a worker; the response has the interval of heartbeats."""
        await controller.admit(await verified(request, Registration))
        return {"exist": True, "heart_beat_seconds": controller.expiry / 3}

    @app.post("/receive_heart_beat", **options)
    async def receive_heart_beat(request: Request) -> dict[str, bool]:
        """Record a heartbeat; `exist` false tells the worker to register again."""
        beat: Heartbeat = await verified(request, Heartbeat)
        return {"exist": controller.registry.heartbeat(beat.worker_name, beat.queue_length)}

    @app.post("/unregister_worker", **options)
    async def unregister_worker(request: Request) -> dict[str, bool]:
        """Unregister a worker; it gets no new requests and finishes those it has."""
        beat: Heartbeat = await verified(request, Heartbeat)
        return {"exist": controller.registry.unregister(beat.worker_name)}


def _add_list_routes(app: FastAPI, controller: Controller) -> None:
    """The lists of models, in the original's form and in the API's."""
    refreshing = asyncio.Lock()

    @app.post("/refresh_all_workers", tags=["original"], responses=ERROR_RESPONSES)
    async def refresh_all_workers() -> None:
        """Fetch the status of all workers, so that the list of models is current."""
        async with refreshing:
            await controller.refresh()

    @app.post("/list_models", tags=["original"], responses=ERROR_RESPONSES)
    async def list_models() -> dict[str, list[str]]:
        """The names of all models."""
        return {"models": controller.registry.models()}

    @app.post(
        "/get_worker_address",
        tags=["original"],
        openapi_extra=JSON_OBJECT_BODY,
        responses=ERROR_RESPONSES,
    )
    async def get_worker_address(request: Request) -> dict[str, str]:
        """This controller's own URL, since it forwards requests; "" for an unknown model."""
        name = await requested_model(await request.body())
        worker = controller.registry.pick(name) if name else None
        return {"address": str(request.base_url).rstrip("/") if worker else ""}

    @app.get("/v1/models", tags=["api"], responses=ERROR_RESPONSES)
    async def models() -> dict[str, Any]:
        """The served models."""
        return model_list(controller.registry.models())


def _in_threads(limit: int) -> Prepare:
    """Run image work in threads, at most `limit` at the same time."""
    semaphore = asyncio.Semaphore(limit)

    async def prepare(work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        async with semaphore:
            return await asyncio.to_thread(work)

    return prepare


def _add_proxy_routes(
    app: FastAPI, controller: Controller, uploads: UploadStore, limits: Limits
) -> None:
    """The routes that workers answer."""
    key = {"authorization": f"Bearer {controller.secret.service_key}"}

    async def proxy(request: Request, legacy: bool) -> Response:
        body = await request.body()
        model = _resolve_model(await requested_model(body), controller.registry)
        info = request.state.info
        if not legacy:
            body = await inline_uploads(body, info.client, uploads, limits)
        headers = {
            "content-type": request.headers.get("content-type", "application/json"),
            "x-request-id": info.id,
        }
        proxied = ProxyRequest(request.url.path, body, headers, legacy)
        next_worker = worker_picker(model, controller.registry, controller.client, key)
        return await cancel_on_disconnect(request.receive, forward(proxied, next_worker))

    add_proxy_routes(app, proxy)


def _resolve_model(name: str | None, registry: WorkerRegistry) -> str:
    """The requested model. ApiError 503 if a worker for it is expected, 404 if it is unknown."""
    models = registry.models()
    if name is not None and name not in models and registry.is_expected(name):
        raise ApiError(
            503, "no worker for this model is available now", code="no_worker", retry_after=5
        )
    return resolve_model(name, models)
