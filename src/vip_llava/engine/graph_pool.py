"""A function of fixed buffers, recorded once and then repeated without its hundreds of launches.

On CUDA it becomes a graph. On other devices it is called as it is, so that all that surrounds
a recording is the same code everywhere and is tested without a GPU.

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

from vip_llava.engine.device_transfer import on

__all__ = ["Recorder", "Recording", "Recordings"]

_WARM_UPS = 2


class Recording:
    """Call it to do the work again, on what the buffers hold now."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self._work = work

    def __call__(self) -> Tensor:
        """The result; it is good until any recording of the same recorder is called."""
        return self._work()


class Recordings:
    """Recordings by size, good as long as the buffers that they were made over stay where they are."""

    def __init__(self, most: int | None = None) -> None:
        """`most`: so many are kept; of more, the one longest unused goes."""
        self._most = most
        self._held: OrderedDict[int, Recording] = OrderedDict()
        self._moves = -1

    def of(self, size: int, moves: int, make: Callable[[], Recording]) -> Recording:
        """That of a size, made now if need be. `moves`: how often the buffers have moved so far."""
        if moves != self._moves:
            self._held.clear()
            self._moves = moves
        if size not in self._held:
            self._held[size] = make()
            if self._most is not None and len(self._held) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(size)
        return self._held[size]


class Recorder:
    """Makes recordings on one device; those on CUDA share one pool of memory.

    They may share it because they are repeated one after the other on one stream, and what has to
    outlive the next of them is copied, or lies in buffers that were there before.
    """

    def __init__(self, device: torch.device, before: Recorder | None = None) -> None:
        """`before`: one whose counts are carried on."""
        self.device = device
        self.count: int = before.count if before else 0
        """Recordings made."""
        self.seconds: float = before.seconds if before else 0.0
        """The time that took, kernels compiled for them included."""
        self.bytes = 0
        """Memory of a GPU that was reserved for what recordings write on the way; they share it."""
        self._pool: Any = None
        self._side: Any = None

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Run `work` a few times and keep it. It must wait for nothing and read no host memory."""
        began = time.perf_counter()
        made = work
        if self.device.type == "cuda":
            made = self._captured(work)
        else:
            work()
        self.count += 1
        self.seconds += time.perf_counter() - began
        return Recording(made)

    def _captured(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with on(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                # One for all: memory of the pool belongs to the stream that it was used on.
                self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            before = torch.cuda.current_stream()
            try:
                return self._on_side(work, before)
            finally:
                # A recording that fails would leave its stream behind as the current one.
                torch.cuda.set_stream(before)

    def _on_side(self, work: Callable[[], Tensor], before: Any) -> Callable[[], Tensor]:
        # Kernels are compiled and libraries set up before, which can't be recorded.
        self._side.wait_stream(before)
        with torch.cuda.stream(self._side):
            for _ in range(_WARM_UPS):
                work()
        before.wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile, for another model say.
        with (
            _no_garbage_collected(),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            ),
        ):
            reserved = torch.cuda.memory_reserved(self.device)
            result = work()
            self.bytes += max(0, torch.cuda.memory_reserved(self.device) - reserved)

        def again() -> Tensor:
            graph.replay()
            return result

        return again


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Python's collector waits meanwhile.

    It would run in the middle of a recording, on its thread, and what it frees there (another
    engine's events, graphs and memory) asks CUDA for things that spoil a recording.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
