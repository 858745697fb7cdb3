"""Scores a model on marked objects, with the options of `vip-llava eval`.

    python projects/default_model/evaluate.py --data FOLDER [--weights runs/seventh] [--groups box,arrow]

FOLDER holds `regions.jsonl` with its photos. Without --all, only photos of the validation split are
asked about. `--help` lists all options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vip_llava.evaluation.benchmarks import BENCHMARKS

# The verbs of the program are made from the registry when it is imported.
BENCHMARKS["marked"] = "default_model.benchmarks.marked:Marked"

from vip_llava.cli.main import main as program  # noqa: E402

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vip-llava eval marked` and return its exit code."""
    return program(["eval", "marked", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
