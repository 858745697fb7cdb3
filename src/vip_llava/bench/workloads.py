"""How fast the engine is beside transformers' own `generate`, in one process on one model.

Each workload gives figures of both ways, so that every comparison is of one run. Images are random
pixels and prompts random ids: what is said does not matter, only how long it takes. Nothing is kept
from one measurement to the next unless the workload is about that.

This module measures; it knows no command line and writes nothing.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vip_llava.bench.bench_model import Stopwatch, Subject
from vip_llava.bench.quantization_error import distance, step_logits
from vip_llava.bench.roofline import finished, forget_peak, held_bytes, peak_bytes, step_bytes
from vip_llava.engine.config import Generated
from vip_llava.engine.engine import Engine, Handle
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

__all__ = [
    "USUAL",
    "WORKLOADS",
    "Figure",
    "Load",
    "measure",
]

PLAIN, ENGINE = "transformers", "engine"
SMALL_BITS: tuple[Literal[8, 4], ...] = (8, 4)
_DECODE = "decode, one asker", "tokens/s"


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


def measure(subject: Subject, load: Load, workload: str) -> list[Figure]:
    """The figures of a workload, by its name in `WORKLOADS`."""
    return WORKLOADS[workload](subject, load)


def _decode(subject: Subject, load: Load) -> list[Figure]:
    """One asker, tokens a second after the first one."""
    engine = subject.engine(max_running=1)
    engine.warm_up()
    return _both(
        *_DECODE, True, load,
        lambda seed: _plain_rate(subject, load, seed),
        lambda seed: _rate(subject, load, engine, seed),
    )  # fmt: skip


def _compiled(subject: Subject, load: Load) -> list[Figure]:
    """The same by transformers with a cache of fixed size, for which it compiles its steps on CUDA;
    that takes minutes to begin with."""
    rates = [_plain_rate(subject, load, seed, static=True) for seed in range(load.runs + 2)][2:]
    name, unit = _DECODE
    return [_figure(name, f"{PLAIN}, static and compiled", unit, rates, True)]


def _small(subject: Subject, load: Load) -> list[Figure]:
    """One asker with small weights: how fast, in how much memory, how far from whole weights."""
    ids = [token for token in subject.prompt(3, 128)[0] if token != subject.image_token_id]
    wanted = step_logits(subject.model, ids)
    found = []
    for bits in SMALL_BITS:
        held = held_bytes(subject.model.device)
        found += _of_bits(subject, load, bits, held)
        held_bytes(subject.model.device)  # nothing of it is left for the next one's count
        small = _quantized(subject, bits)
        apart = distance(step_logits(small.model, ids), wanted)
        del small
        way = f"{ENGINE}, {bits}-bit weights"
        error, same = 100 * apart.error, 100 * apart.agreement
        found.append(Figure("error of logits", way, "%", error, error, False))
        found.append(Figure("same most probable token", way, "%", same, same, True))
    return found


def _quantized(subject: Subject, bits: Literal[8, 4]) -> Subject:
    small = replace(subject, model=copy.deepcopy(subject.model))
    quantize_model(small.model, Quantization(bits))
    return small


def _of_bits(subject: Subject, load: Load, bits: Literal[8, 4], held: int) -> list[Figure]:
    """Speed and memory; `held`: bytes in use before this model is made."""
    small, device = _quantized(subject, bits), subject.model.device
    held_bytes(device)
    forget_peak(device)
    way = f"{ENGINE}, {bits}-bit weights"
    tokens = load.text_tokens + small.tokens_per_view + load.new_tokens
    engine = small.engine(max_running=1, kv_tokens=tokens + 16)
    engine.warm_up()
    rates = [_rate(small, load, engine, seed) for seed in range(load.runs + 1)][1:]
    speed = _figure(*_DECODE[:1], way, _DECODE[1], rates, True)
    read = step_bytes(small.model) * speed.value / 1e9
    found = [speed, Figure("weights read in it", way, "GB/s", read, read, True)]
    if device.type == "cuda":
        memory = (peak_bytes(device) - held) / 1e9
        found.append(Figure("model with one image's cache", way, "GB", memory, memory, False))
    return found


def _plain_rate(subject: Subject, load: Load, seed: int, static: bool = False) -> float:
    watch = Stopwatch()
    prompt = subject.prompt(seed, load.text_tokens)
    subject.generate([prompt], load.new_tokens, watch, static=static)
    _, first, *_, last = watch.times  # the prompt comes before the first token
    return (load.new_tokens - 1) / (last - first)


def _rate(subject: Subject, load: Load, engine: Engine, seed: int) -> float:
    result = _submit(engine, subject.prompt(seed, load.text_tokens), load.new_tokens).result()
    return (load.new_tokens - 1) / max(result.decode_seconds, 1e-9)


def _first_token(subject: Subject, load: Load) -> list[Figure]:
    """A new image and its question, to the first token."""
    engine = subject.engine(max_running=1)
    engine.warm_up()

    def plain(seed: int) -> float:
        prompt = [subject.prompt(seed, load.text_tokens)]
        return 1e3 * _seconds(subject, lambda: subject.generate(prompt, 1))

    def ours(seed: int) -> float:
        prompt = subject.prompt(seed, load.text_tokens)
        return 1e3 * _seconds(subject, lambda: _submit(engine, prompt, 1).result())

    return _both("first token, new image", "ms", False, load, plain, ours)


def _many(subject: Subject, load: Load) -> list[Figure]:
    """Many askers at once, each with an image of its own; how long each waits, with the engine."""
    made = [subject.prompt(seed, load.text_tokens) for seed in range(load.askers)]

    def plainly(batch: int) -> float:
        # Of those who are answered one by one a few tell enough.
        asked = made[: 4 if batch == 1 else None]

        def run() -> None:
            for start in range(0, len(asked), batch):
                subject.generate(asked[start : start + batch], load.new_tokens)

        return len(asked) / _seconds(subject, run)

    tokens = load.text_tokens + subject.tokens_per_view + load.new_tokens
    engine = subject.engine(kv_tokens=load.askers * (tokens + 32), max_running=load.askers)
    answers: list[Generated] = []

    def run() -> None:
        handles = [_submit(engine, prompt, load.new_tokens) for prompt in made]
        answers.extend(handle.result() for handle in handles)

    engine.warm_up()
    _seconds(subject, lambda: _submit(engine, subject.prompt(-1, 8), 2).result())
    name = f"{load.askers} askers"
    ways = [(f"{PLAIN}, one by one", 1), (f"{PLAIN}, {load.batch} together", load.batch)]
    rates = {way: plainly(batch) for way, batch in ways}
    rates[ENGINE] = load.askers / _seconds(subject, run)
    figures = [Figure(name, way, "requests/s", rate, rate, True) for way, rate in rates.items()]
    first = [1e3 * one.prefill_seconds for one in answers]
    whole = [1e3 * (one.prefill_seconds + one.decode_seconds) for one in answers]
    figures.append(_figure(f"{name}, first token", ENGINE, "ms", first, False))
    figures.append(_figure(f"{name}, whole answer", ENGINE, "ms", whole, False))
    return [*figures, *_recordings(engine)]


def _recordings(engine: Engine) -> list[Figure]:
    """What it cost to record all steps, where that is done."""
    stats = engine.stats()
    if not stats.recordings:
        return []
    seconds = stats.recording_seconds
    return [Figure(f"{stats.recordings} recordings made", ENGINE, "s", seconds, seconds, False)]


def _second_turn(subject: Subject, load: Load) -> list[Figure]:
    """The next question about the same image, to its first token; the engine's first beside."""
    engine = subject.engine(max_running=1)
    engine.warm_up()
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
    return [*figures, _figure(name, "engine, first turn", "ms", first[-load.runs :], False)]


WORKLOADS: dict[str, Callable[[Subject, Load], list[Figure]]] = {
    "decode": _decode,
    "first-token": _first_token,
    "many": _many,
    "second-turn": _second_turn,
    "small": _small,
    "compiled": _compiled,
}
"""What can be measured, by name."""

USUAL = tuple(WORKLOADS)[:4]
"""What is measured where nothing is chosen."""


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
    """Both ways by turns, each with an image of its own, after one of each to warm up."""
    found: dict[str, list[float]] = {PLAIN: [], ENGINE: []}
    for run in range(load.runs + 1):
        for offset, (way, once) in enumerate(((PLAIN, plain), (ENGINE, ours))):
            value = once(1000 * run + 10 * offset)
            if run:
                found[way].append(value)
    return [_figure(workload, way, unit, values, higher) for way, values in found.items()]


def _figure(workload: str, way: str, unit: str, values: Sequence[float], higher: bool) -> Figure:
    middle = statistics.median(values)
    return Figure(workload, way, unit, middle, _bad_end(values, higher), higher)


def _bad_end(values: Sequence[float], higher: bool) -> float:
    """The value that 95 in 100 reach or better."""
    ordered = sorted(values, reverse=higher)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def _seconds(subject: Subject, work: Callable[[], object]) -> float:
    finished(subject.model.device)
    began = time.perf_counter()
    work()
    finished(subject.model.device)
    return time.perf_counter() - began
