"""Concurrent clients on the API, compared with one thread per request around `generate`.

    python benchmarks/serving.py [--clients 1 8 32 64] [--requests 2] [--tokens 24]
                                 [--random 7b --device cuda --dtype bfloat16] [--write HARDWARE]

Both servers run the same model, one after the other in separate processes, and get the same streamed
questions about the same images, each with its own box. A client sends its next question after the
last answer. The model is the default one, or random weights of a published size with `--random`,
whose answers always have the full number of tokens. All traffic stays on this machine.
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
SERVERS = ("vip-llava", "thread-per-request")
ONE_CORE_NOTE = (
    "With OMP_NUM_THREADS=1 the first server computes on one core, the second on all cores."
)


@dataclass(frozen=True)
class RequestResult:
    """One request: seconds to the first text and to the end, the text, or an error."""

    first: float
    total: float
    text: str
    tokens: int
    error: str = ""


def question(seed: int, tokens: int) -> dict[str, Any]:
    """A request body with a photo crop and a box that no other seed has."""
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


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> RequestResult:
    """Send one request and read its whole stream."""
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
        return RequestResult(0, 0, "", 0, f"{type(error).__name__}: {error}")
    total = time.perf_counter() - began
    return RequestResult(first or total, total, text.strip(), pieces)


async def load(
    address: str, clients: int, requests: int, tokens: int
) -> tuple[list[RequestResult], float]:
    """The results of all clients' requests in the order of seeds, and the total seconds."""
    bodies = [question(seed, tokens) for seed in range(clients * requests)]
    results: list[RequestResult | None] = [None] * len(bodies)
    left = iter(range(len(bodies)))

    async with httpx.AsyncClient(
        base_url=address, timeout=1800, limits=httpx.Limits(max_connections=clients)
    ) as client:

        async def one() -> None:
            for index in left:
                results[index] = await ask(client, bodies[index])

        began = time.perf_counter()
        await asyncio.gather(*[one() for _ in range(clients)])
        seconds = time.perf_counter() - began
    return [each for each in results if each is not None], seconds


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far, independent of other load."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def serving(server: str, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Start this server in a process; yields its URL and process id."""
    command = [sys.executable, str(HERE / "serving_workers.py"), server, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line.startswith("http://"):
            raise SystemExit(f"{server} did not start")
        yield line, process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def figures(results: Sequence[RequestResult], seconds: float, cpu: float) -> dict[str, float]:
    """The statistics of one server at one number of clients."""
    good = [each for each in results if not each.error]
    if not good:
        return {"errors": len(results), "rate": 0.0, "cpu": float("nan")}

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
        "errors": len(results) - len(good),
    }


def report(
    found: dict[tuple[str, int], tuple[list[RequestResult], float, float]], args: Any, about: str
) -> str:
    """The results as Markdown."""
    model = f"{args.random}, random weights" if args.random else "the default model"
    lines = [
        f"# Serving {model}",
        "",
        about,
        f"Requests: one photo with one box each, all different, at most {args.tokens} generated "
        f"tokens, streamed; {args.requests} for each client, one after the other. Times are seconds; "
        "both servers in one run. Other load lengthens times, but not CPU seconds.",
        "",
        f"Command: `{args.command}`.",
        "",
        "| clients | server | time to first text, median | p95 | total time, median | p95 "
        "| requests/s | ratio | CPU seconds a request | errors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for clients in args.clients:
        rates = {server: figures(*found[server, clients])["rate"] for server in SERVERS}
        for server in SERVERS:
            row = figures(*found[server, clients])
            other = rates[SERVERS[1 - SERVERS.index(server)]]
            cells = (
                [row.get(key, float("nan")) for key in list(row)[:4]] if "first_p50" in row else []
            )
            times = " | ".join(f"{value:.2f}" for value in cells) or "| | |"
            ratio = row["rate"] / other if other else float("inf")
            lines.append(
                f"| {clients} | {server} | {times} | {row['rate']:.3f} | {ratio:.2f} "
                f"| {row['cpu']:.2f} | {row['errors']:.0f} |"
            )
    same = [
        one.text == other.text
        for clients in args.clients
        for one, other in zip(
            found[SERVERS[0], clients][0], found[SERVERS[1], clients][0], strict=True
        )
    ]
    lines += ["", f"Identical texts of both servers: {sum(same)} of {len(same)}."]
    if os.environ.get("OMP_NUM_THREADS") == "1" and args.device == "cpu":
        lines.append(ONE_CORE_NOTE)
    errors = {each.error for results, _, _ in found.values() for each in results if each.error}
    lines += [f"Error: {error[:200]}" for error in sorted(errors)[:5]]
    return "\n".join(lines) + "\n"


def surroundings(device: str) -> str:
    """Hardware and versions in one sentence."""
    import torch
    import transformers

    what = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        what = torch.cuda.get_device_name(device)
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    return (
        f"{what}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; load average before the run "
        f"{os.getloadavg()[0]:.1f}."
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
    args = parser.parse_args()
    args.command = f"python benchmarks/serving.py {' '.join(sys.argv[1:])}".strip()
    make_settings(limits={"tokens": args.tokens})
    options = ["--device", args.device, "--dtype", args.dtype]
    options += ["--random", args.random] if args.random else []
    about = surroundings(args.device)
    found: dict[tuple[str, int], tuple[list[RequestResult], float, float]] = {}
    for server in SERVERS:
        with serving(server, options) as (address, pid):
            asyncio.run(load(address, 1, 1, 2))  # warm
            for clients in args.clients:
                before = cpu_seconds(pid)
                results, seconds = asyncio.run(load(address, clients, args.requests, args.tokens))
                found[server, clients] = results, seconds, cpu_seconds(pid) - before
                row = figures(*found[server, clients])
                sys.stderr.write(f"{server}, {clients} clients: {row}\n")
    text = report(found, args, about)
    if args.write:
        name = f"serving_{args.write}_{datetime.date.today()}.md"
        (HERE / "results" / name).write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
