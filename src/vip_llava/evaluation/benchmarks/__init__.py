"""The registry of benchmarks. Importing it imports no benchmark."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.evaluation.benchmark import Benchmark, BenchmarkOptions

__all__ = ["BENCHMARKS", "benchmark_class", "open_benchmark"]

#: Name -> "module:Class"; a program that adds its own benchmark adds a line here.
BENCHMARKS: dict[str, str] = {
    "visual7w": f"{__name__}.visual7w:Visual7W",
    "pointqa": f"{__name__}.pointqa:PointQa",
    "vcr": f"{__name__}.vcr:Vcr",
    "vip-bench": f"{__name__}.vip_bench:VipBench",
    "refcocog": f"{__name__}.refcocog:RefCocoG",
    "recognition": f"{__name__}.shapes:Recognition",
    "shapes": f"{__name__}.shapes:Shapes",
}


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of a benchmark. Raises RequestError for an unknown name."""
    if name not in BENCHMARKS:
        raise RequestError(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    module, _, attribute = BENCHMARKS[name].partition(":")
    found: type[Benchmark] = getattr(importlib.import_module(module), attribute)
    return found


def open_benchmark(name: str, data: Path, options: BenchmarkOptions | None = None) -> Benchmark:
    """A benchmark over its data. Raises RequestError for an unknown name, or as its class does."""
    from vip_llava.evaluation.benchmark import BenchmarkOptions

    return benchmark_class(name)(data, options or BenchmarkOptions())
