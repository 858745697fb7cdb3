"""All benchmarks by name; a new one is its file and its line here. Importing this loads none of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vip_llava.errors import RequestError
from vip_llava.evaluation.items import Benchmark, Options

__all__ = ["BENCHMARKS", "benchmark_class", "open_benchmark"]

#: Name -> module of this package and class.
BENCHMARKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "visual7w": ("visual7w", "Visual7W"),
        "pointqa": ("pointqa", "PointQa"),
        "vcr": ("vcr", "Vcr"),
        "vip-bench": ("vip_bench", "VipBench"),
        "refcocog": ("refcocog", "RefCocoG"),
        "recognition": ("shapes", "Recognition"),
        "shapes": ("shapes", "Shapes"),
        "marked": ("marked_things", "MarkedThings"),
    }
)


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of a benchmark. Raises RequestError for an unknown name."""
    if name not in BENCHMARKS:
        raise RequestError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    module, kind = BENCHMARKS[name]
    found: type[Benchmark] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    return found


def open_benchmark(name: str, data: Path, options: Options | None = None) -> Benchmark:
    """A benchmark over its data. Raises DataError and RequestError as the benchmark does."""
    return benchmark_class(name)(data, options or Options())
