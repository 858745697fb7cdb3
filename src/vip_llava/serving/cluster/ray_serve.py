"""A Ray Serve application: replicas of the worker that grow and shrink with what is asked.

`build` gives the application for `serve run vip_llava.serving.cluster.ray_serve:build` or `ray.serve.run`. Each
model is a deployment of the worker's application; in front of them stands one with the API's routes,
which asks another replica when one dies. Needs the extra `cluster`. Ray carries what goes between its
processes with pickle, so a Ray cluster belongs into a network of its own; nothing here does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vip_llava.errors import MissingExtraError
from vip_llava.serving.middleware.app_factory import shell

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

from vip_llava.serving.cluster.asgi_client import Head, ask_inside
from vip_llava.serving.cluster.failover import Begun, Call, LostError, pass_on
from vip_llava.serving.cluster.model_routing import (
    ANY_ERROR,
    chosen_model,
    model_list,
    model_of,
)
from vip_llava.serving.cluster.proxy_routes import add_passing_routes
from vip_llava.serving.cluster.registry import ModelName
from vip_llava.serving.middleware.stream import unless_gone
from vip_llava.serving.settings import Limits, ServerSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["ClusterSettings", "build"]

_KEY_VARIABLE = "VIP_LLAVA_API_KEY"
_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.RaySystemError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
_FULL = (
    ray.serve.exceptions.BackPressureError,
    ray.serve.exceptions.DeploymentUnavailableError,
    ray.serve.exceptions.ReplicaUnavailableError,
)


class ClusterSettings(BaseModel):
    """What `build` takes; from a command line every value comes as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[ModelName, str] = Field(
        {"default": "default"}, description="Names and what `load` opens; default: the small model."
    )
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 4
    target_requests: Annotated[float, Field(gt=0)] = 16
    """Requests that a replica should have at one time; more make another replica."""
    fronts: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    load: dict[str, str | bool] = Field({}, description="Keywords of `vip_llava.load`.")
    hosts: tuple[str, ...] = Field((), description="Names of the service in the Host header.")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _bounds_fit(self) -> ClusterSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is more than max_replicas")
        if not self.models:
            raise ValueError("models: at least one is needed")
        return self


class Replica:
    """One replica of a model: the worker's application, asked from inside."""

    async def __init__(self, name: str, model: str, content: Mapping[str, Any]) -> None:  # type: ignore[misc]
        from vip_llava.assistant import load
        from vip_llava.serving.api.app import models_of
        from vip_llava.serving.cluster.worker import create_worker

        settings = ClusterSettings.model_validate(content)
        keywords: dict[str, Any] = dict(settings.load)
        assistant = load(None if model == "default" else model, **keywords)
        # Who may ask, and how often, is the front's business.
        limits = settings.limits.model_copy(update={"rate": 0.0})
        self._app = create_worker({name: assistant}, ServerSettings(limits=limits))
        self._models = models_of(self._app)
        # Ends with the process: Ray waits for running answers before it ends one.
        self._life = contextlib.AsyncExitStack()
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))

    async def answer(
        self, path: str, body: bytes, fields: dict[str, str]
    ) -> AsyncIterator[tuple[int, dict[str, str]] | bytes]:
        """Status and fields, then the pieces of the answer."""
        async with contextlib.aclosing(ask_inside(self._app, path, body, fields)) as answer:
            async for piece in answer:
                yield (piece.status, piece.fields) if isinstance(piece, Head) else piece

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica whose engine has ended."""
        reason = self._models.not_ready()
        if reason is not None:
            raise RuntimeError(reason)


class Front:
    """What clients ask: the API's main routes, and the original's stream."""

    def __init__(self, content: Mapping[str, Any], replicas: Mapping[str, Any]) -> None:
        self._settings = ClusterSettings.model_validate(content)
        self._replicas = dict(replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return _front_app(self._settings, self._replicas)


def build(arguments: ClusterSettings) -> Any:
    """The application, for `serve run` or `ray.serve.run`.

    API keys are not among the arguments, which Ray stores and shows: the variable VIP_LLAVA_API_KEY of the
    processes that run the front holds one.
    """
    content = arguments.model_dump(mode="json")
    replicas = {}
    for number, (name, model) in enumerate(arguments.models.items()):
        deployment = ray.serve.deployment(
            Replica,
            name=f"model-{number}",
            max_ongoing_requests=arguments.limits.queue,
            # A replica has its own queue and says 503 where it is full.
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
    front = ray.serve.deployment(
        ray.serve.ingress(None)(Front),
        name="front",
        num_replicas=arguments.fronts,
        max_ongoing_requests=arguments.limits.connections,
        ray_actor_options={"num_cpus": 0.1},
    )
    return front.bind(content, replicas)


class ReplicaBackend:
    """One request to whichever replica Ray chooses."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def send(self, call: Call) -> Begun:
        """The head of the answer."""
        method = self._handle.options(method_name="answer", stream=True)
        answer = method.remote(call.path, call.body, dict(call.fields))
        try:
            status, fields = await self._reached(anext, answer)
        except asyncio.CancelledError:
            answer.cancel()
            raise

        async def close() -> None:
            # Ends the work of a replica whose answer nobody waits for any more.
            answer.cancel()

        return Begun(status, fields, self._pieces(answer), close)

    def lost(self, error: LostError) -> None:
        """Ray sees to it."""

    def done(self) -> None:
        """Ray counts."""

    async def _pieces(self, answer: Any) -> AsyncIterator[bytes]:
        while True:
            try:
                piece = await self._reached(anext, answer)
            except StopAsyncIteration:
                return
            yield piece

    @staticmethod
    async def _reached(ask: Callable[[Any], Any], answer: Any) -> Any:
        try:
            return await ask(answer)
        except _LOST as error:
            raise LostError(f"a replica has died ({type(error).__name__})", reached=True) from error
        except _FULL as error:
            raise LostError(
                f"no replica takes it ({type(error).__name__})", reached=False
            ) from error


def _front_app(settings: ClusterSettings, replicas: Mapping[str, DeploymentHandle]) -> FastAPI:
    keys = [os.environ[_KEY_VARIABLE]] if os.environ.get(_KEY_VARIABLE) else []
    app = shell(
        ServerSettings.model_validate(
            {"keys": keys, "hosts": settings.hosts, "limits": settings.limits.model_dump()}
        ),
        title="vip-llava on Ray",
    )
    names = sorted(replicas)

    async def passed(request: Request, legacy: bool) -> Response:
        body = await request.body()
        handle = replicas[chosen_model(await model_of(body), names)]
        kind = request.headers.get("content-type", "application/json")
        fields = {"content-type": kind, "x-request-id": request.state.request_id}
        call = Call(request.url.path, body, fields, legacy)
        return await unless_gone(request.receive, pass_on(call, lambda: ReplicaBackend(handle)))

    @app.get("/v1/models", tags=["api"], responses=ANY_ERROR)
    async def models() -> dict[str, Any]:
        """The models that can be asked for."""
        return model_list(names)

    add_passing_routes(app, passed)
    return app
