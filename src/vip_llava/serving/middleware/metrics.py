"""What a server counts, in the text format of Prometheus. No names, no content, no addresses.

Every server has a registry of its own, so that several may live in one process. Paths are those
of the routes and methods are of a fixed list: what clients invent makes no new series.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The registry and the series that every server has; parts add theirs to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vip_llava_http_requests",
            "Answers by route, method and status.",
            ("path", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "vip_llava_http_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "vip_llava_refused",
            "Requests refused, by the code of the error.",
            ("code",),
            registry=self.registry,
        )
        self.open_requests = Gauge(
            "vip_llava_http_open_requests", "Requests being answered.", registry=self.registry
        )

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count one answer. `path` is a route's and `method` one that is known, never a client's."""
        self._requests.labels(path, method, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def refused(self, code: str) -> None:
        """Count one refusal; `code` is one of this project's."""
        self._refused.labels(code).inc()

    def text(self) -> bytes:
        """Everything in the text format."""
        return generate_latest(self.registry)
