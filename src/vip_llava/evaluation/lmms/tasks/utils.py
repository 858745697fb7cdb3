"""The functions that the task files name, a set for each benchmark."""

from __future__ import annotations

from vip_llava.evaluation.benchmarks import BENCHMARKS
from vip_llava.evaluation.lmms.docs import SEED_FILE, Task

__all__ = ["SEED"]

SEED = SEED_FILE

for _name in BENCHMARKS:
    globals().update(Task(_name).functions())
