"""CUDA graphs: a function over fixed buffers, captured once and replayed without its launches.

On other devices the function is called instead, so that the code around a graph is the same
everywhere and is tested without a GPU.

This module knows neither models nor requests.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vip_llava.engine.device_transfer import current_device

__all__ = ["Graph", "GraphCache", "GraphPool"]

Graph = Callable[[], Tensor]
"""Repeats the captured work on what the buffers hold now. The result is valid until any graph of
the same pool is called."""

_WARM_UPS = 2


class GraphCache:
    """Graphs by size, valid as long as the buffers that they were captured over stay in place."""

    def __init__(self, max_graphs: int | None = None) -> None:
        """`max_graphs`: the least recently used graph beyond this number is dropped."""
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[int, Graph] = OrderedDict()
        self._generation = -1

    def get(self, size: int, generation: int, capture: Callable[[], Graph]) -> Graph:
        """The graph of a size, captured now if there is none.

        `generation`: of the buffers; graphs of another generation are dropped.
        """
        if generation != self._generation:
            self._graphs.clear()
            self._generation = generation
        if size not in self._graphs:
            self._graphs[size] = capture()
            if self._max_graphs is not None and len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(size)
        return self._graphs[size]


class GraphPool:
    """Captures graphs on one device; those on CUDA share one pool of memory.

    They can share it because they are replayed one after the other on one stream, and what has to
    outlive the next replay is copied or in buffers that existed before the capture.
    """

    def __init__(self, device: torch.device, previous: GraphPool | None = None) -> None:
        """`previous`: a pool whose counts are continued."""
        self.device = device
        self.num_captured: int = previous.num_captured if previous else 0
        self.seconds: float = previous.seconds if previous else 0.0
        """Time spent capturing, compilation of kernels included."""
        self.bytes = 0
        """GPU memory reserved for intermediate results."""
        self._pool: Any = None
        self._stream: Any = None

    def capture(self, work: Callable[[], Tensor]) -> Graph:
        """Run `work` a few times and capture it. It must not synchronize or read host memory."""
        began = time.perf_counter()
        graph: Graph = work
        if self.device.type == "cuda":
            graph = self._captured(work)
        else:
            work()
        self.num_captured += 1
        self.seconds += time.perf_counter() - began
        return graph

    def _captured(self, work: Callable[[], Tensor]) -> Graph:
        with current_device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                # One stream for all: memory of the pool belongs to the stream that used it.
                self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            before = torch.cuda.current_stream()
            try:
                return self._captured_on_stream(work, before)
            finally:
                # A capture that fails leaves its stream behind as the current one.
                torch.cuda.set_stream(before)

    def _captured_on_stream(self, work: Callable[[], Tensor], before: Any) -> Graph:
        # The first runs compile kernels and initialize libraries, which cannot be captured.
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        before.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA during the capture.
        mode = "thread_local"
        with (
            _no_garbage_collection(),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode),
        ):
            reserved = torch.cuda.memory_reserved(self.device)
            result = work()
            self.bytes += max(0, torch.cuda.memory_reserved(self.device) - reserved)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the collector: destroying another engine's events and graphs would break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
