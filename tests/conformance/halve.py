"""Make a folder of recorded results with every second case of another one.

    python -m tests.conformance.halve SOURCE TARGET {odd,even}

Every .jsonl file is cut to its odd or even lines; all other files are linked. The suite must pass on
such a folder, too: `VIP_LLAVA_GOLDEN=TARGET pytest tests/conformance -m conformance`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def halve(source: Path, target: Path, *, odd: bool) -> None:
    """Write the half of `source` with the odd (first, third, ...) or even cases to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".jsonl":
            lines = path.read_text("utf-8").splitlines(keepends=True)
            copy.write_text("".join(lines[0 if odd else 1 :: 2]), "utf-8")
        else:
            copy.symlink_to(path.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description="Halve a folder of recorded results.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("half", choices=("odd", "even"))
    options = parser.parse_args()
    halve(options.source, options.target, odd=options.half == "odd")


if __name__ == "__main__":
    main()
