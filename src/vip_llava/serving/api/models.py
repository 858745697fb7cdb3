"""The models of one server by name: loading, ready, or with an engine that has ended.

Knows assistants and their engines' threads, and nothing of requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vip_llava.serving.middleware.errors import Problem

if TYPE_CHECKING:
    from prometheus_client import Metric

    from vip_llava.assistant import Assistant

__all__ = ["EngineCollector", "Loader", "Models"]

Loader = Callable[[], "Assistant"]
_LOADING_RETRY_SECONDS = 5
log = logging.getLogger("vip_llava.serving")


class Models:
    """Assistants by name; those of `loaders` are opened by a thread once `start` is called."""

    def __init__(
        self,
        assistants: Mapping[str, Assistant],
        loaders: Mapping[str, Loader] | None = None,
        on_failure: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """on_failure: called, by that thread, with the error of a model that could not be opened."""
        self._open = dict(assistants)
        self._loaders = dict(loaders or {})
        self._on_failure = on_failure
        self._started = False
        self._loading: threading.Thread | None = None
        self._lock = threading.Lock()
        self.created = int(time.time())

    @property
    def names(self) -> tuple[str, ...]:
        """All names, also of models that are still being opened."""
        return tuple(dict.fromkeys((*self._open, *self._loaders)))

    def open_now(self) -> Mapping[str, Assistant]:
        """The models that are open."""
        return dict(self._open)

    def get(self, name: str) -> Assistant:
        """The assistant of a name. Problem 404 for an unknown one, 503 if it can't answer now."""
        found = self._open.get(name)
        if found is None and name in self._loaders:
            raise Problem(
                503,
                "the model is being opened",
                code="model_loading",
                retry_after=_LOADING_RETRY_SECONDS,
                param="model",
            )
        if found is None:
            # Without the name that was asked for: it may be anything.
            raise Problem(
                404,
                f"there is no such model; there are: {', '.join(self.names)}",
                code="model_not_found",
                param="model",
            )
        if self.ended(found):
            raise ended()
        return found

    def ended(self, assistant: Assistant) -> bool:
        """Whether its engine's thread has ended though nobody stopped it."""
        return self._started and not assistant.engine.driven

    @property
    def loading(self) -> bool:
        """Whether the thread that opens models is at work; it can't be interrupted."""
        return self._loading is not None and self._loading.is_alive()

    def not_ready(self) -> str | None:
        """Why not every model can answer, or None."""
        missing = [name for name in self._loaders if name not in self._open]
        if missing:
            return f"{len(missing)} of {len(self.names)} models are being opened"
        if any(self.ended(each) for each in self._open.values()):
            return "a model's engine has ended"
        return None

    def start(self) -> None:
        """Let the engines run, and begin to open what is not open yet."""
        with self._lock:
            self._started = True
            for assistant in self._open.values():
                assistant.engine.warm_up()
                assistant.engine.start()
        if self._loaders:
            self._loading = threading.Thread(target=self._load, name="vip-llava-load", daemon=True)
            self._loading.start()

    def stop(self) -> None:
        """End the engines' threads."""
        with self._lock:
            self._started = False
            for assistant in self._open.values():
                assistant.engine.stop()

    def _load(self) -> None:
        for name, loader in self._loaders.items():
            try:
                assistant = loader()
                # What is recorded on a GPU is recorded before anybody waits for it.
                assistant.engine.warm_up()
            except Exception as error:
                self._on_failure(error)
                return
            with self._lock:
                if not self._started:
                    return
                assistant.engine.start()
                self._open[name] = assistant
            log.info("model %s is open", name)


def ended() -> Problem:
    """What is told of a model whose engine's thread has ended."""
    return Problem(503, "the model's engine has ended", code="engine_ended", param="model")


class EngineCollector(Collector):
    """What the engines did and hold, asked when somebody looks."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def describe(self) -> Iterator[Metric]:
        """Nothing ahead of time, so that registering does not ask the engines."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One family a count, one series a model."""
        gauges = {
            "running": "Requests being answered by the engine.",
            "waiting": "Requests that wait for the engine.",
            "kv_tokens_used": "Tokens of KV memory in use.",
            "kv_tokens_kept": "Tokens of KV memory kept for requests with the same beginning.",
            "kv_tokens": "Tokens of KV memory there may be.",
        }
        counters = {
            "steps": "Steps of the engine.",
            "preemptions": "Requests put off for want of memory.",
            "prompt_tokens": "Tokens of prompts.",
            "cached_tokens": "Tokens of prompts that did not have to be read again.",
        }
        found = {name: each.engine.stats() for name, each in self._models.open_now().items()}
        for key, about in gauges.items():
            gauge = GaugeMetricFamily(f"vip_llava_engine_{key}", about, labels=["model"])
            for name, stats in found.items():
                gauge.add_metric([name], getattr(stats, key))
            yield gauge
        for key, about in counters.items():
            counter = CounterMetricFamily(f"vip_llava_engine_{key}", about, labels=["model"])
            for name, stats in found.items():
                counter.add_metric([name], getattr(stats, key))
            yield counter
