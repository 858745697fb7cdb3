"""How fast the engine is beside transformers' own `generate`, in one process on one model.

Each workload gives figures of both ways, so that every comparison is of one run. Pictures are random
pixels and prompts random ids: what is said does not matter, only how long it takes. Nothing is kept
from one measurement to the next unless the workload is about that.

This module measures; it knows no command line and writes nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vip_llava.engine.core import Engine, Handle
from vip_llava.engine.sampling import SamplingParams
from vip_llava.engine.subject import Stopwatch, Subject

__all__ = [
    "WORKLOADS",
    "Ceilings",
    "Figure",
    "Load",
    "ceilings",
    "measure",
    "peak_bytes",
]

PLAIN, ENGINE = "transformers", "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked. The defaults are the workloads that the project's targets speak of."""

    text_tokens: int = 64
    new_tokens: int = 100
    askers: int = 64
    batch: int = 32
    """Requests that transformers answers together in its better way for many askers."""
    runs: int = 5


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured in one way."""

    workload: str
    way: str
    unit: str
    value: float
    """The middle of the runs."""
    p95: float
    """The bad end: 95 in 100 runs were at least as good (the worst one where runs are few)."""
    higher_is_better: bool

    def better_than(self, other: Figure) -> float:
        """How many times better this is."""
        ratio = self.value / other.value
        return ratio if self.higher_is_better else 1 / ratio


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device does at best: bytes read and written by a copy, and a large product."""

    copy_gigabytes: float
    product_teraflops: float


def measure(subject: Subject, load: Load, workloads: Sequence[str] = ()) -> Iterator[list[Figure]]:
    """The figures of each workload as it is done (default: all of `WORKLOADS`)."""
    for name in workloads or WORKLOADS:
        yield WORKLOADS[name](subject, load)


def _decode(subject: Subject, load: Load) -> list[Figure]:
    """One asker, tokens a second after the first one."""

    def plain(seed: int) -> float:
        watch = Stopwatch()
        subject.generate([subject.prompt(seed, load.text_tokens)], load.new_tokens, watch)
        _, first, *_, last = watch.times  # the prompt comes before the first token
        return (load.new_tokens - 1) / (last - first)

    engine = subject.engine()

    def ours(seed: int) -> float:
        result = _submit(engine, subject.prompt(seed, load.text_tokens), load.new_tokens).result()
        return (load.new_tokens - 1) / max(result.decode_seconds, 1e-9)

    return _both("decode, one asker", "tokens/s", True, load, plain, ours)


def _first_token(subject: Subject, load: Load) -> list[Figure]:
    """A new picture and its question, to the first token."""
    engine = subject.engine()

    def plain(seed: int) -> float:
        prompt = [subject.prompt(seed, load.text_tokens)]
        return 1e3 * _seconds(subject, lambda: subject.generate(prompt, 1))

    def ours(seed: int) -> float:
        prompt = subject.prompt(seed, load.text_tokens)
        return 1e3 * _seconds(subject, lambda: _submit(engine, prompt, 1).result())

    return _both("first token, new picture", "ms", False, load, plain, ours)


def _many(subject: Subject, load: Load) -> list[Figure]:
    """Many askers at once, each with a picture of its own."""
    made = [subject.prompt(seed, load.text_tokens) for seed in range(load.askers)]

    def plainly(batch: int) -> float:
        def run() -> None:
            for start in range(0, len(made), batch):
                subject.generate(made[start : start + batch], load.new_tokens)

        return load.askers / _seconds(subject, run)

    tokens = load.text_tokens + subject.tokens_per_view + load.new_tokens
    engine = subject.engine(
        kv_tokens=load.askers * (tokens + 32),
        max_running=load.askers,
        step_tokens=max(1024, load.askers + 1),
    )

    def run() -> None:
        for handle in [_submit(engine, prompt, load.new_tokens) for prompt in made]:
            handle.result()

    _seconds(subject, lambda: _submit(engine, subject.prompt(-1, 8), 2).result())  # warm up
    name = f"{load.askers} askers"
    ways = [(f"{PLAIN}, one by one", 1), (f"{PLAIN}, {load.batch} together", load.batch)]
    rates = {way: plainly(batch) for way, batch in ways}
    rates[ENGINE] = load.askers / _seconds(subject, run)
    return [Figure(name, way, "requests/s", rate, rate, True) for way, rate in rates.items()]


def _second_turn(subject: Subject, load: Load) -> list[Figure]:
    """The next question about the same picture, to its first token; the engine's first beside."""
    engine = subject.engine()
    first: list[float] = []
    name = "first token, second turn"

    def turns(seed: int) -> tuple[list[int], Tensor]:
        ids, pixels = subject.prompt(seed, load.text_tokens)
        began = time.perf_counter()
        answer = _submit(engine, (ids, pixels), 8)
        next(answer)
        first.append(1e3 * (time.perf_counter() - began))
        more, _ = subject.prompt(seed + 1, 16)
        asked = [token for token in more if token != subject.image_token_id]
        return [*ids, *answer.result().tokens, *asked], pixels

    def plain(seed: int) -> float:
        prompt = [turns(seed)]
        return 1e3 * _seconds(subject, lambda: subject.generate(prompt, 1))

    def ours(seed: int) -> float:
        engine.forget()
        prompt = turns(seed)
        return 1e3 * _seconds(subject, lambda: _submit(engine, prompt, 1).result())

    figures = _both(name, "ms", False, load, plain, ours)
    middle = statistics.median(first[-load.runs :])
    return [
        *figures,
        Figure(name, "engine, first turn", "ms", middle, max(first[-load.runs :]), False),
    ]


WORKLOADS: dict[str, Callable[[Subject, Load], list[Figure]]] = {
    "decode": _decode,
    "first-token": _first_token,
    "many": _many,
    "second-turn": _second_turn,
}
"""What can be measured, by name."""


def _submit(engine: Engine, prompt: tuple[list[int], Tensor], count: int) -> Handle:
    return engine.submit(*prompt, SamplingParams(max_new_tokens=count))


def _both(
    workload: str,
    unit: str,
    higher: bool,
    load: Load,
    plain: Callable[[int], float],
    ours: Callable[[int], float],
) -> list[Figure]:
    """Both ways by turns, each with a picture of its own, after one of each to warm up."""
    found: dict[str, list[float]] = {PLAIN: [], ENGINE: []}
    for run in range(load.runs + 1):
        for offset, (way, once) in enumerate(((PLAIN, plain), (ENGINE, ours))):
            value = once(1000 * run + 10 * offset)
            if run:
                found[way].append(value)
    return [
        Figure(workload, way, unit, statistics.median(values), _bad_end(values, higher), higher)
        for way, values in found.items()
    ]


def _bad_end(values: Sequence[float], higher: bool) -> float:
    """The value that 95 in 100 reach or better."""
    ordered = sorted(values, reverse=higher)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def _seconds(subject: Subject, work: Callable[[], object]) -> float:
    _wait_for(subject.model.device)
    began = time.perf_counter()
    work()
    _wait_for(subject.model.device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":  # not run where this was written
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the device itself: a copy of 256 MB (16 on a CPU), a product of large squares."""
    quick = device.type == "cpu"
    source = torch.ones((16 if quick else 256) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 1024 if quick else 8192
    left = torch.ones(side, side, dtype=dtype, device=device)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            _wait_for(device)
            began = time.perf_counter()
            work()
            _wait_for(device)
            times.append(time.perf_counter() - began)
        return min(times)

    copied = best(lambda: target.copy_(source))
    multiplied = best(lambda: left @ left)
    return Ceilings(2 * source.numel() / copied / 1e9, 2 * side**3 / multiplied / 1e12)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU, or of this process."""
    if device.type == "cuda":  # not run where this was written
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows does not tell
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
