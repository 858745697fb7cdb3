"""A long run against a real server: memory must stay flat and no request may hang or fail.

    python benchmarks/soak.py [--minutes 10] [--clients 8] [--random tiny] [--write HARDWARE]

Clients send requests with and without images, stream, disconnect early, upload and delete, and send
invalid requests. Every half minute the server's memory, threads and open files are sampled. The exit
code is 1 if one of them grows, a request hangs, or an answer is wrong. At most 60 minutes; only local
connections are used.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import datetime
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from serving import PHOTOS, question, serving, surroundings

MOST_MINUTES = 60
HANG_SECONDS = 120
MOST_GROWTH_MB = 30.0
RESULTS = Path(__file__).parent / "results"


class Soak:
    """The clients and their observations."""

    def __init__(self, client: httpx.AsyncClient, pid: int, end: float) -> None:
        self.client = client
        self.server = psutil.Process(pid)
        self.end = end
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[tuple[float, float, int, int]] = []

    async def client_loop(self, seed: int) -> None:
        """A client: random actions, one after the other, until the end."""
        rng = random.Random(seed)
        actions = [self.whole, self.stream, self.disconnect, self.text, self.upload, self.refused]
        while time.monotonic() < self.end:
            action = rng.choice(actions)
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    await action(rng)
                self.counts[action.__name__] += 1
            except (TimeoutError, httpx.HTTPError, AssertionError) as error:
                self.wrong.append(f"{action.__name__}: {type(error).__name__} {error}"[:200])

    async def whole(self, rng: random.Random) -> None:
        """An image with a region, without streaming."""
        body = {**question(rng.randrange(10_000), 8), "stream": False}
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["vip_llava"]["images"][0]["regions"]

    async def stream(self, rng: random.Random) -> None:
        """The same, streamed to its end."""
        body = question(rng.randrange(10_000), 12)
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-200:]

    async def disconnect(self, rng: random.Random) -> None:
        """Disconnect after the first pieces."""
        body = question(rng.randrange(10_000), 200)
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                if rng.random() < 0.3:
                    break

    async def text(self, rng: random.Random) -> None:
        """Text only, sampled."""
        message = {"role": "user", "content": f"Say {rng.randrange(10**9)}."}
        body = {"model": "m", "messages": [message], "max_tokens": 8, "temperature": 1.0}
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text

    async def upload(self, rng: random.Random) -> None:
        """Upload an image, use it, delete it."""
        data = (PHOTOS / "cat.jpg").read_bytes()
        kind = {"content-type": "image/jpeg"}
        left = (await self.client.post("/v1/uploads", content=data, headers=kind)).json()["id"]
        body = {**question(rng.randrange(10_000), 4), "stream": False}
        body["messages"][0]["content"][0]["image_url"]["url"] = f"upload:{left}"
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        gone = await self.client.delete(f"/v1/uploads/{left}")
        assert gone.status_code == 200, gone.text

    async def refused(self, rng: random.Random) -> None:
        """An image that the server must reject."""
        body: dict[str, Any] = question(rng.randrange(10_000), 4)
        part = body["messages"][0]["content"][0]
        noise = base64.b64encode(rng.randbytes(5000)).decode()
        part["image_url"]["url"] = rng.choice(["/etc/hostname", f"data:image/png;base64,{noise}"])
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 422, answer.text

    async def sample(self) -> None:
        """Memory, threads and open files of the server, every half minute."""
        while time.monotonic() < self.end:
            memory = self.server.memory_info().rss / 2**20
            left = (self.end - time.monotonic()) / 60
            sample = (left, memory, self.server.num_threads(), self.server.num_fds())
            self.samples.append(sample)
            sys.stderr.write(
                f"{left:5.1f} minutes left: {memory:.0f} MB, {sample[2]} threads, {sample[3]} files, "
                f"{sum(self.counts.values())} actions, {len(self.wrong)} wrong\n"
            )
            await asyncio.sleep(min(30, max(0.1, self.end - time.monotonic())))

    def verdict(self) -> list[str]:
        """What failed. The first third of the samples is warm-up."""
        found = list(self.wrong[:5])
        rest = self.samples[len(self.samples) // 3 :]
        half = len(rest) // 2
        if half:
            before = max(sample[1] for sample in rest[:half])
            after = max(sample[1] for sample in rest[half:])
            if after - before > MOST_GROWTH_MB:
                found.append(f"memory grew by {after - before:.0f} MB")
            if max(s[3] for s in rest[half:]) > max(s[3] for s in rest[:half]) + 20:
                found.append("open files grow")
            if max(s[2] for s in rest[half:]) > max(s[2] for s in rest[:half]) + 5:
                found.append("threads grow")
        return found


async def soak(address: str, pid: int, minutes: float, clients: int) -> Soak:
    """Run all clients for the given minutes."""
    async with httpx.AsyncClient(base_url=address, timeout=HANG_SECONDS) as client:
        run = Soak(client, pid, time.monotonic() + 60 * minutes)
        await asyncio.gather(run.sample(), *[run.client_loop(seed) for seed in range(clients)])
        await asyncio.sleep(0.5)
        metrics = (await client.get("/metrics")).text
        if "vip_llava_answers_open 0.0" not in metrics:
            run.wrong.append("answers are still open after all clients ended")
    return run


def report(run: Soak, command: str, about: str, minutes: float) -> str:
    """A page in Markdown."""
    rows = [
        f"| {minutes - left:.1f} | {memory:.0f} | {threads} | {files} |"
        for left, memory, threads, files in run.samples
    ]
    done = ", ".join(f"{name} {count}" for name, count in sorted(run.counts.items()))
    verdict = "; ".join(run.verdict()) or "memory, threads and files stay flat, nothing failed"
    return "\n".join(
        [
            "# A soak of the server",
            "",
            about,
            "",
            f"Command: `{command}`. Actions: {done}. Wrong: {len(run.wrong)}.",
            f"Verdict: {verdict}.",
            "",
            "| minute | memory, MB | threads | open files |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--random", choices=("tiny",))
    parser.add_argument("--write", metavar="HARDWARE")
    given = parser.parse_args()
    minutes = min(given.minutes, MOST_MINUTES)
    about = surroundings("cpu")
    with serving("vip-llava", ["--random", given.random] if given.random else []) as (address, pid):
        run = asyncio.run(soak(address, pid, minutes, given.clients))
    text = report(
        run, f"python benchmarks/soak.py {' '.join(sys.argv[1:])}".strip(), about, minutes
    )
    if given.write:
        name = f"soak_{given.write}_{datetime.date.today()}.md"
        (RESULTS / name).write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    sys.exit(bool(run.verdict()))


if __name__ == "__main__":
    main()
