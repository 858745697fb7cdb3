"""A Ray Serve application: autoscaled replicas of the worker behind an ingress.

`build` is for `serve run vip_llava.serving.cluster.ray_serve:build` or `ray.serve.run`. Each model
is a deployment of the worker application; the ingress has the API's routes and retries on another
replica when one dies. It needs the extra `cluster`. Ray itself uses pickle between its processes,
so a Ray cluster belongs in a private network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vip_llava.errors import MissingExtraError
from vip_llava.serving.middleware.app_factory import create_base_app

try:
    import ray.exceptions
    import ray.serve
    import ray.serve.exceptions
except ImportError as error:
    raise MissingExtraError(
        f"serving on Ray needs the library {error.name}: pip install 'vip-llava[cluster]'"
    ) from error

# isort: split
from fastapi import FastAPI, Request
from starlette.responses import Response

from vip_llava.serving.cluster.asgi_client import ResponseHead, call_app
from vip_llava.serving.cluster.failover import (
    ProxyRequest,
    WorkerLostError,
    WorkerResponse,
    forward,
)
from vip_llava.serving.cluster.model_routing import (
    ERROR_RESPONSES,
    model_list,
    requested_model,
    resolve_model,
)
from vip_llava.serving.cluster.proxy_routes import add_proxy_routes
from vip_llava.serving.cluster.registry import ModelName
from vip_llava.serving.middleware.stream import cancel_on_disconnect
from vip_llava.serving.settings import Limits, ServerSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["ClusterSettings", "build"]

_KEY_VARIABLE = "VIP_LLAVA_API_KEY"
_LOST_ERRORS = (
    ray.exceptions.RayActorError,
    ray.exceptions.RaySystemError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
_FULL_ERRORS = (
    ray.serve.exceptions.BackPressureError,
    ray.serve.exceptions.DeploymentUnavailableError,
    ray.serve.exceptions.ReplicaUnavailableError,
)


class ClusterSettings(BaseModel):
    """The arguments of `build`; on a command line every value is a string."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[ModelName, str] = Field(
        {"default": "default"}, description="Served names, and what `load` takes for each."
    )
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 4
    target_requests: Annotated[float, Field(gt=0)] = 16
    """Concurrent requests of a replica; more of them start another replica."""
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    load: dict[str, str | bool] = Field({}, description="Keyword arguments of `vip_llava.load`.")
    hosts: tuple[str, ...] = Field((), description="Names allowed in the Host header.")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _check(self) -> ClusterSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not exceed max_replicas")
        if not self.models:
            raise ValueError("models: must name at least one model")
        return self


class Replica:
    """One replica of a model: the worker application, called in process."""

    async def __init__(self, name: str, model: str, content: Mapping[str, Any]) -> None:  # type: ignore[misc]
        from vip_llava.assistant import load
        from vip_llava.serving.api.app import served_models
        from vip_llava.serving.cluster.worker import create_worker

        settings = ClusterSettings.model_validate(content)
        keywords: dict[str, Any] = dict(settings.load)
        assistant = load(None if model == "default" else model, **keywords)
        # The ingress checks keys and rates.
        limits = settings.limits.model_copy(update={"rate": 0.0})
        self._app = create_worker({name: assistant}, ServerSettings(limits=limits))
        self._models = served_models(self._app)
        # It ends with the process; Ray lets running requests finish before that.
        self._exit_stack = contextlib.AsyncExitStack()
        await self._exit_stack.enter_async_context(self._app.router.lifespan_context(self._app))

    async def answer(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> AsyncIterator[tuple[int, dict[str, str]] | bytes]:
        """Status and headers, then the chunks of the response."""
        async with contextlib.aclosing(call_app(self._app, path, body, headers)) as response:
            async for part in response:
                yield (part.status, part.headers) if isinstance(part, ResponseHead) else part

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica whose engine has died."""
        reason = self._models.not_ready()
        if reason is not None:
            raise RuntimeError(reason)


class Ingress:
    """The API's main routes and the original's stream, for clients."""

    def __init__(self, content: Mapping[str, Any], replicas: Mapping[str, Any]) -> None:
        self._settings = ClusterSettings.model_validate(content)
        self._replicas = dict(replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return _ingress_app(self._settings, self._replicas)


def build(arguments: ClusterSettings) -> Any:
    """The application, for `serve run` or `ray.serve.run`.

    The API key is not an argument, because Ray stores and displays arguments; the ingress reads it
    from the environment variable VIP_LLAVA_API_KEY.
    """
    content = arguments.model_dump(mode="json")
    replicas = {}
    for number, (name, model) in enumerate(arguments.models.items()):
        deployment = ray.serve.deployment(
            Replica,
            name=f"model-{number}",
            max_ongoing_requests=arguments.limits.queue,
            # A replica has its own queue limit and responds with 503 when it is full.
            autoscaling_config={
                "min_replicas": arguments.min_replicas,
                "initial_replicas": max(arguments.min_replicas, 1),
                "max_replicas": arguments.max_replicas,
                "target_ongoing_requests": arguments.target_requests,
            },
            ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
            health_check_period_s=5,
        )
        replicas[name] = deployment.bind(name, model, content)
    ingress = ray.serve.deployment(
        ray.serve.ingress(None)(Ingress),
        name="ingress",
        num_replicas=arguments.ingress_replicas,
        max_ongoing_requests=arguments.limits.connections,
        ray_actor_options={"num_cpus": 0.1},
    )
    return ingress.bind(content, replicas)


class ReplicaConnection:
    """One request to a replica that Ray picks."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def send(self, request: ProxyRequest) -> WorkerResponse:
        """See `WorkerConnection.send`."""
        method = self._handle.options(method_name="answer", stream=True)
        response = method.remote(request.path, request.body, dict(request.headers))
        try:
            status, headers = await self._next(response)
        except asyncio.CancelledError:
            response.cancel()
            raise

        async def close() -> None:
            response.cancel()  # frees the sequence of an unfinished answer

        return WorkerResponse(status, headers, self._chunks(response), close)

    def mark_lost(self, error: WorkerLostError) -> None:
        """Nothing: Ray replaces the replica."""

    def release(self) -> None:
        """Nothing: Ray counts requests."""

    async def _chunks(self, response: Any) -> AsyncIterator[bytes]:
        while True:
            try:
                chunk = await self._next(response)
            except StopAsyncIteration:
                return
            yield chunk

    @staticmethod
    async def _next(response: Any) -> Any:
        try:
            return await anext(response)
        except _LOST_ERRORS as error:
            raise WorkerLostError(
                f"a replica died ({type(error).__name__})", reached=True
            ) from error
        except _FULL_ERRORS as error:
            raise WorkerLostError(
                f"no replica is available ({type(error).__name__})", reached=False
            ) from error


def _ingress_app(settings: ClusterSettings, replicas: Mapping[str, DeploymentHandle]) -> FastAPI:
    keys = [os.environ[_KEY_VARIABLE]] if os.environ.get(_KEY_VARIABLE) else []
    app = create_base_app(
        ServerSettings.model_validate(
            {"keys": keys, "hosts": settings.hosts, "limits": settings.limits.model_dump()}
        ),
        title="vip-llava on Ray",
    )
    names = sorted(replicas)

    async def proxy(request: Request, legacy: bool) -> Response:
        body = await request.body()
        handle = replicas[resolve_model(await requested_model(body), names)]
        kind = request.headers.get("content-type", "application/json")
        headers = {"content-type": kind, "x-request-id": request.state.info.id}
        proxied = ProxyRequest(request.url.path, body, headers, legacy)
        work = forward(proxied, lambda: ReplicaConnection(handle))
        return await cancel_on_disconnect(request.receive, work)

    @app.get("/v1/models", tags=["api"], responses=ERROR_RESPONSES)
    async def models() -> dict[str, Any]:
        """The served models."""
        return model_list(names)

    add_proxy_routes(app, proxy)
    return app
