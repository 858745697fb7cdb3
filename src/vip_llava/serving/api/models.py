"""The models of one server by name: loading, ready, or with a dead engine.

It knows assistants and their engines' threads, not requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vip_llava.backends.native import as_native
from vip_llava.serving.middleware.errors import ApiError

if TYPE_CHECKING:
    from prometheus_client import Metric

    from vip_llava.assistant import Assistant

__all__ = ["EngineCollector", "Loader", "ServedModels"]

Loader = Callable[[], "Assistant"]
_LOADING_RETRY_SECONDS = 5
log = logging.getLogger("vip_llava.serving")


class ServedModels:
    """Assistants by name; `start` loads those of `loaders` in a thread."""

    def __init__(
        self,
        assistants: Mapping[str, Assistant],
        loaders: Mapping[str, Loader] | None = None,
        on_failure: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """on_failure: called in that thread with the error of a model that failed to load."""
        self._loaded = dict(assistants)
        self._loaders = dict(loaders or {})
        self._on_failure = on_failure
        self._started = False
        self._load_thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.created = int(time.time())

    @property
    def names(self) -> tuple[str, ...]:
        """All names, including models that are still loading."""
        return tuple(dict.fromkeys((*self._loaded, *self._loaders)))

    def loaded(self) -> Mapping[str, Assistant]:
        """The models that have been loaded."""
        return dict(self._loaded)

    def get(self, name: str) -> Assistant:
        """The assistant of a name. ApiError 404 if it is unknown, 503 if it can't answer now."""
        found = self._loaded.get(name)
        if found is None and name in self._loaders:
            raise ApiError(
                503,
                "the model is loading",
                code="model_loading",
                retry_after=_LOADING_RETRY_SECONDS,
                param="model",
            )
        if found is None:
            # The requested name is not repeated: it may be any text.
            raise ApiError(
                404,
                f"unknown model; available: {', '.join(self.names)}",
                code="model_not_found",
                param="model",
            )
        if self.is_dead(found):
            raise engine_dead()
        return found

    def is_dead(self, assistant: Assistant) -> bool:
        """Whether its engine's thread has ended without `stop`."""
        return self._started and not as_native(assistant.backend).engine.is_running

    @property
    def loading(self) -> bool:
        """Whether the loading thread runs; it can't be interrupted."""
        return self._load_thread is not None and self._load_thread.is_alive()

    def not_ready(self) -> str | None:
        """Why some model can't answer, or None."""
        missing = [name for name in self._loaders if name not in self._loaded]
        if missing:
            return f"{len(missing)} of {len(self.names)} models are loading"
        if any(self.is_dead(each) for each in self._loaded.values()):
            return "the engine of a model has died"
        return None

    def start(self) -> None:
        """Start the engines and the loading thread."""
        with self._lock:
            self._started = True
            for assistant in self._loaded.values():
                as_native(assistant.backend).engine.warm_up()
                as_native(assistant.backend).engine.start()
        if self._loaders:
            self._load_thread = threading.Thread(
                target=self._load, name="vip-llava-load", daemon=True
            )
            self._load_thread.start()

    def stop(self) -> None:
        """Stop the engines' threads."""
        with self._lock:
            self._started = False
            for assistant in self._loaded.values():
                as_native(assistant.backend).engine.stop()

    def _load(self) -> None:
        for name, loader in self._loaders.items():
            try:
                assistant = loader()
                # CUDA graphs are captured before the first request.
                as_native(assistant.backend).engine.warm_up()
            except Exception as error:
                self._on_failure(error)
                return
            with self._lock:
                if not self._started:
                    return
                as_native(assistant.backend).engine.start()
                self._loaded[name] = assistant
            log.info("model %s is loaded", name)


def engine_dead() -> ApiError:
    """The error for a model whose engine's thread has ended."""
    return ApiError(503, "the engine of the model has died", code="engine_ended", param="model")


class EngineCollector(Collector):
    """Engine statistics, read when metrics are collected."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def describe(self) -> Iterator[Metric]:
        """Empty, so that registration does not read the engines."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One metric family for each statistic, one series for each model."""
        gauges = {
            "running": "Running sequences.",
            "waiting": "Waiting sequences.",
            "kv_cache_tokens_used": "KV cache tokens in use.",
            "kv_cache_tokens_idle": "KV cache tokens kept for prefix reuse.",
            "kv_cache_tokens": "KV cache capacity in tokens.",
        }
        counters = {
            "steps": "Engine steps.",
            "preemptions": "Preempted sequences.",
            "prompt_tokens": "Prompt tokens.",
            "cached_tokens": "Prompt tokens reused from the prefix cache.",
        }
        found = {
            name: as_native(each.backend).engine.stats()
            for name, each in self._models.loaded().items()
        }
        for key, about in (gauges | counters).items():
            family = GaugeMetricFamily if key in gauges else CounterMetricFamily
            metric = family(f"vip_llava_engine_{key}", about, labels=["model"])
            for name, stats in found.items():
                metric.add_metric([name], getattr(stats, key))
            yield metric
