"""A warm `ask` with the default model, beside an older checkout of this project.

A new photo each time, and the next question about the same one. Stop ids are disabled, so that both
generate the same number of tokens. Both run in turn in processes of their own, three times each.

    git worktree add /tmp/before COMMIT
    python benchmarks/warm_ask.py --against /tmp/before [--runs 5] [--tokens 20]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "photos" / "cat.jpg"
QUESTIONS = [
    "What is <region:1>?", "Name <region:1>.", "What do you see <region:1>?",
    "Which thing is <region:1>?", "What object is <region:1>?", "Tell me about <region:1>.",
]  # fmt: skip
WARM_UPS = 2


def endless(answerer: Any) -> None:
    """Disable stop ids, in this checkout and in old ones."""
    engine = getattr(getattr(answerer, "backend", answerer), "engine", None)
    if hasattr(engine, "_core"):
        engine._core.stop_ids = frozenset()
    elif engine is not None:
        engine._stop_ids = frozenset()
    else:
        type(answerer.processor).stop_ids = property(lambda self: frozenset())


def measure(runs: int, tokens: int) -> dict[str, float]:
    """Median seconds of the checkout that is imported as vip_llava."""
    from PIL import Image

    from vip_llava import Box, load

    answerer = load()
    endless(answerer)
    photo = Image.open(PHOTO).convert("RGB")
    width, height = photo.size
    box = Box(width * 0.3, height * 0.3, width * 0.7, height * 0.7)
    found: dict[str, list[float]] = {"new photo": [], "same photo": []}
    for run in range(runs + WARM_UPS):
        other = photo.crop((run, 0, width - 20 + run, height))
        asked = (QUESTIONS[0], QUESTIONS[1 + run % (len(QUESTIONS) - 1)])
        for times, question in zip(found.values(), asked, strict=True):
            began = time.perf_counter()
            answerer.ask(other, question, box, max_new_tokens=tokens)
            times.append(time.perf_counter() - began)
    return {name: statistics.median(times[WARM_UPS:]) for name, times in found.items()}


def elsewhere(checkout: Path, options: argparse.Namespace) -> dict[str, float]:
    """`measure` in a process of its own, with the code of a checkout."""
    # -P: `kernels.py` beside this file is not the package that transformers looks for.
    command = [sys.executable, "-P", __file__, "--runs", str(options.runs)]
    done = subprocess.run(
        [*command, "--tokens", str(options.tokens), "--once"],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")}, cwd=checkout,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.runs, options.tokens)))
        return
    ratios: dict[str, list[float]] = {}
    for pair in range(options.pairs):
        before = elsewhere(options.against, options) if options.against else {}
        now = elsewhere(ROOT, options)
        for name, seconds in now.items():
            line = f"pair {pair + 1}, {name}: {seconds:.2f} s"
            if before:
                ratios.setdefault(name, []).append(before[name] / seconds)
                line += f"; before {before[name]:.2f} s, {ratios[name][-1]:.2f} times"
            print(line, flush=True)
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} times as fast (middle of {len(found)})")


if __name__ == "__main__":
    main()
