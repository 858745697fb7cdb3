"""Clients at once on the API, beside a worker with one thread a request around transformers' `generate`.

    python benchmarks/serving.py [--clients 1 8 32 64] [--requests 2] [--tokens 24]
                                 [--random 7b --device cuda --dtype bfloat16] [--write HARDWARE]

Both serve the same model, one after the other in processes of their own, and get the same questions
about the same images, each with its own box, streamed. A client asks its next question when the
last one is answered. Without `--random` the model is the default one; random weights have the
published sizes, and their answers the full number of tokens. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import datetime
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from vip_llava.serving.settings import make_settings

HERE = Path(__file__).parent
PHOTOS = HERE.parent / "examples" / "photos"
QUESTIONS = ("What is <region:1>?", "Describe <region:1> in one sentence.")
WAYS = ("vip-llava", "a thread a request")
ONE_CORE = (
    "With one thread an operation the first way computes on one core, the second on all there are."
)


@dataclass(frozen=True)
class Seen:
    """One request: seconds to the first text and to the end, the text, or what went wrong."""

    first: float
    total: float
    text: str
    tokens: int
    error: str = ""


def question(seed: int, tokens: int) -> dict[str, Any]:
    """The body of a request: one of the photos, cut and marked as no other request has it."""
    rng = random.Random(seed)
    photo = Image.open(PHOTOS / rng.choice(("cat.jpg", "coffee.jpg"))).convert("RGB")
    left, top = rng.randrange(30), rng.randrange(30)
    photo = photo.crop((left, top, photo.width, photo.height))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    x, y = rng.random() * 0.5, rng.random() * 0.5
    box = [x, y, x + 0.2 + rng.random() * 0.3, y + 0.2 + rng.random() * 0.3]
    region = {"shape": "box", "frame": "unit", "box": box}
    content = [
        {"type": "image_url", "image_url": {"url": address}, "regions": [region]},
        {"type": "text", "text": rng.choice(QUESTIONS)},
    ]
    return {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
    """One request, from sending it to the end of its stream."""
    began = time.perf_counter()
    first, text, pieces, ended = 0.0, "", 0, False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                ended = ended or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line[6:])
                if "error" in piece:
                    raise RuntimeError(piece["error"]["message"])
                for choice in piece["choices"]:
                    if choice["delta"].get("content"):
                        first = first or time.perf_counter() - began
                        text += choice["delta"]["content"]
                        pieces += 1
            if answer.status_code != 200 or not ended:
                raise RuntimeError(f"status {answer.status_code}, ended: {ended}")
    except (httpx.HTTPError, RuntimeError) as error:
        return Seen(0, 0, "", 0, f"{type(error).__name__}: {error}")
    total = time.perf_counter() - began
    return Seen(first or total, total, text.strip(), pieces)


async def load(address: str, clients: int, requests: int, tokens: int) -> tuple[list[Seen], float]:
    """All requests of so many clients, in the order of their seeds, and the seconds they took."""
    bodies = [question(seed, tokens) for seed in range(clients * requests)]
    seen: list[Seen | None] = [None] * len(bodies)
    left = iter(range(len(bodies)))

    async with httpx.AsyncClient(
        base_url=address, timeout=1800, limits=httpx.Limits(max_connections=clients)
    ) as client:

        async def one() -> None:
            for index in left:
                seen[index] = await ask(client, bodies[index])

        began = time.perf_counter()
        await asyncio.gather(*[one() for _ in range(clients)])
        seconds = time.perf_counter() - began
    return [each for each in seen if each is not None], seconds


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; other work on the machine does not add to it."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def serving(way: str, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Address and process id of a process that serves in this way."""
    command = [sys.executable, str(HERE / "serving_workers.py"), way, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line.startswith("http://"):
            raise SystemExit(f"{way} did not start")
        yield line, process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def figures(seen: Sequence[Seen], seconds: float, cpu: float) -> dict[str, float]:
    """What is told of one way with so many clients."""
    good = [each for each in seen if not each.error]
    if not good:
        return {"errors": len(seen), "rate": 0.0, "cpu": float("nan")}

    def p95(values: list[float]) -> float:
        return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]

    firsts, totals = [each.first for each in good], [each.total for each in good]
    return {
        "first_p50": statistics.median(firsts),
        "first_p95": p95(firsts),
        "total_p50": statistics.median(totals),
        "total_p95": p95(totals),
        "rate": len(good) / seconds,
        "cpu": cpu / len(good),
        "errors": len(seen) - len(good),
    }


def report(
    found: dict[tuple[str, int], tuple[list[Seen], float, float]], given: Any, about: str
) -> str:
    """A page in Markdown."""
    lines = [
        f"# Serving {given.random + ', random weights' if given.random else 'the default model'}",
        "",
        about,
        f"Requests: one photo with one box each, all different, at most {given.tokens} tokens "
        f"out, streamed; {given.requests} for each client, one after the other. Times in seconds; "
        "both ways in one run. Other work on the machine lengthens times, and not processor seconds.",
        "",
        f"Command: `{given.command}`.",
        "",
        "| clients | way | first text, middle | 95 in 100 | whole, middle | 95 in 100 | requests/s "
        "| times the other | processor seconds a request | errors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for clients in given.clients:
        rates = {way: figures(*found[way, clients])["rate"] for way in WAYS}
        for way in WAYS:
            told = figures(*found[way, clients])
            other = rates[WAYS[1 - WAYS.index(way)]]
            cells = (
                [told.get(key, float("nan")) for key in list(told)[:4]]
                if "first_p50" in told
                else []
            )
            times = " | ".join(f"{value:.2f}" for value in cells) or "| | |"
            ratio = told["rate"] / other if other else float("inf")
            lines.append(
                f"| {clients} | {way} | {times} | {told['rate']:.3f} | {ratio:.2f} "
                f"| {told['cpu']:.2f} | {told['errors']:.0f} |"
            )
    same = [
        one.text == other.text
        for clients in given.clients
        for one, other in zip(found[WAYS[0], clients][0], found[WAYS[1], clients][0], strict=True)
    ]
    lines += ["", f"The same text both ways: {sum(same)} of {len(same)}."]
    if os.environ.get("OMP_NUM_THREADS") == "1" and given.device == "cpu":
        lines.append(ONE_CORE)
    errors = {each.error for seen, _, _ in found.values() for each in seen if each.error}
    lines += [f"Error: {error[:200]}" for error in sorted(errors)[:5]]
    return "\n".join(lines) + "\n"


def surroundings(device: str) -> str:
    """Hardware and versions in a sentence."""
    import torch
    import transformers

    what = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        what = torch.cuda.get_device_name(device)
    threads = os.environ.get("OMP_NUM_THREADS", "the default number of")
    return (
        f"{what}, {os.cpu_count()} cores, {threads} threads an operation, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; other work on the machine: load "
        f"{os.getloadavg()[0]:.1f} before the run."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--random", choices=("tiny", "7b"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", metavar="HARDWARE")
    given = parser.parse_args()
    given.command = f"python benchmarks/serving.py {' '.join(sys.argv[1:])}".strip()
    make_settings(limits={"tokens": given.tokens})
    options = ["--device", given.device, "--dtype", given.dtype]
    options += ["--random", given.random] if given.random else []
    about = surroundings(given.device)
    found: dict[tuple[str, int], tuple[list[Seen], float, float]] = {}
    for way in WAYS:
        with serving(way, options) as (address, pid):
            asyncio.run(load(address, 1, 1, 2))  # warm
            for clients in given.clients:
                before = cpu_seconds(pid)
                seen, seconds = asyncio.run(load(address, clients, given.requests, given.tokens))
                found[way, clients] = seen, seconds, cpu_seconds(pid) - before
                told = figures(*found[way, clients])
                sys.stderr.write(f"{way}, {clients} clients: {told}\n")
    text = report(found, given, about)
    if given.write:
        name = f"serving_{given.write}_{datetime.date.today()}.md"
        (HERE / "results" / name).write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
