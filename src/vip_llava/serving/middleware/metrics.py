"""HTTP metrics in the text format of Prometheus, without content, names or addresses.

Each server has its own registry, so that several can run in one process. Label values are route
paths and known methods; a client can't create new series.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The series that every server has; other modules add theirs to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vip_llava_http_requests",
            "Responses by route, method and status.",
            ("path", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "vip_llava_http_request_seconds",
            "Seconds from the request's headers to the end of the response.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "vip_llava_refused",
            "Error responses by error code.",
            ("code",),
            registry=self.registry,
        )
        self.open_requests = Gauge(
            "vip_llava_http_open_requests", "Requests in progress.", registry=self.registry
        )

    def count_response(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count one response. `path` is a route's path and `method` a known one."""
        self._requests.labels(path, method, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_error(self, code: str) -> None:
        """Count one error response by its code."""
        self._refused.labels(code).inc()

    def text(self) -> bytes:
        """All series in the text format."""
        return generate_latest(self.registry)
