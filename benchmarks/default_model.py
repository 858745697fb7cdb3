"""Latency and memory of the default model on a CPU, cold and warm.

Cold: complete processes of `vip-llava ask` with ten tokens, from start to exit. Warm: the same question
in one process with the model loaded. Side by side: the same prompt, image and number of tokens with
transformers' `generate` and float32 weights, alternating with `ask` in one process. Targets on two
cores without a GPU: ten tokens in at most 12 s cold and 3 s warm, at most 1.6 GB resident.

    python benchmarks/default_model.py [--runs 5] [--write NAME_OF_HARDWARE]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "cat.jpg"
BOX = (100, 40, 330, 250)
# A caption is long enough that all ten tokens are generated.
QUESTION = "Describe the image."
TOKENS = 10
RESULTS = Path(__file__).parent / "results"


def cold(runs: int) -> list[tuple[float, float]]:
    """Seconds of each process, and its peak resident size in MB."""
    command = [sys.executable, "-m", "vip_llava", "ask", str(PHOTO), QUESTION, "--box"]
    command += [",".join(map(str, BOX)), "--max-new-tokens", str(TOKENS)]
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        found.append((time.perf_counter() - began, usage.ru_maxrss / 1024))
    return found


def warm(runs: int) -> tuple[list[float], list[int], float]:
    """Seconds and generated tokens of each answer in one process, and its peak size in MB."""
    from vip_llava import Box, load

    assistant = load()
    seconds, tokens = [], []
    for _ in range(runs + 1):  # the first one is a warm-up
        began = time.perf_counter()
        answer = assistant.ask(PHOTO, QUESTION, Box(*BOX), max_new_tokens=TOKENS)
        seconds.append(time.perf_counter() - began)
        tokens.append(answer.usage.completion_tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds[1:], tokens[1:], peak


def side_by_side(runs: int) -> list[tuple[float, float]]:
    """Seconds of `ask` and of transformers' generate with float32 weights, for the same tokens."""
    import torch

    from vip_llava import Box, load

    ours, plain = load(), load(dtype="float32")
    model, processor = plain.model, plain.processor
    request = {"image": PHOTO, "question": QUESTION, "regions": Box(*BOX)}
    pairs = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        answer = ours.ask(PHOTO, QUESTION, Box(*BOX), max_new_tokens=TOKENS)
        middle = time.perf_counter()
        ours.engine.clear_cache()  # no run uses the cache of the one before
        count = answer.usage.completion_tokens + (answer.finish_reason == "stop")
        began_plain = time.perf_counter()
        inputs = processor([plain.prepare(request).turns])
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=count, do_sample=False)
        pairs.append((middle - began, time.perf_counter() - began_plain))
    return pairs[1:]


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", metavar="NAME_OF_HARDWARE", help="also write a result file")
    given = parser.parse_args()
    cold_runs = cold(given.runs)
    warm_seconds, tokens, warm_peak = warm(given.runs)
    pairs = side_by_side(given.runs)
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    import torch
    import transformers

    lines = [
        "# The default model answers on a CPU",
        "",
        f"{TOKENS} tokens about one box on a 451 x 300 photo; median (smallest to largest) of {given.runs} runs, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, float16 weights in float32 arithmetic. Generated: {min(tokens)} to {max(tokens)} tokens.",
        "",
        f"Command: `python benchmarks/default_model.py --runs {given.runs}`.",
        "",
        "| what | measured | target |",
        "|---|---|---|",
        f"| cold: whole process, seconds | {_middle([s for s, _ in cold_runs])} | 12 |",
        f"| warm: one answer, seconds | {_middle(warm_seconds)} | 3 |",
        f"| side by side: `ask`, seconds | {_middle([mine for mine, _ in pairs])} | |",
        f"| side by side: transformers' generate, float32 | {_middle([t for _, t in pairs])} | |",
        f"| generate / `ask`, median | {ratio:.2f} | 2 |",
        f"| peak resident size, cold, MB | {max(m for _, m in cold_runs):.0f} | 1600 |",
        f"| peak resident size, warm, MB | {warm_peak:.0f} | 1600 |",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"default-model_{given.write}_{datetime.date.today()}.md"
        (RESULTS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
