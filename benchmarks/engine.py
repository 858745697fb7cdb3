"""The engine beside transformers' `generate`: the workloads of `vip-llava bench`, filed by hardware.

    python benchmarks/engine.py [--random tiny|7b] [--all] [--write NAME_OF_HARDWARE] [options of bench]

Without `--random` the default model is measured. `--all` adds quantized weights and compiled
transformers, about three minutes for a 7B on an H200. Results go to `benchmarks/results` only when
`--write` names the hardware.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from vip_llava.cli.main import main

RESULTS = Path(__file__).parent / "results"
# The slowest last: the results so far are written after each.
ALL = ["decode", "quantized", "first-token", "second-turn", "concurrent", "compiled"]


def arguments(given: list[str]) -> list[str]:
    """The arguments of `vip-llava bench`: the name of the hardware becomes a file name."""
    words = list(given)
    if "--write" in words:
        at = words.index("--write") + 1
        hardware = words[at]
        words[at] = str(RESULTS / f"engine_{hardware}_{datetime.date.today()}.md")
    if "--all" in words:
        words.remove("--all")
        words += [word for name in ALL for word in ("--workload", name)]
    return ["bench", *(words or ["--runs", "5"])]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
