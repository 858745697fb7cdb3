"""The engine beside the `generate` of transformers, in one process on one model.

Each workload measures both, so that every comparison is of one run. Nothing is cached from one
measurement to the next unless the workload is about that.

This module knows no command line and writes no files.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vip_llava.bench.bench_model import BenchModel, Prompt, TokenTimer
from vip_llava.bench.quantization_error import decode_logits, logits_error
from vip_llava.bench.roofline import (
    allocated_bytes,
    decode_bytes,
    peak_bytes,
    reset_peak,
    synchronize,
)
from vip_llava.engine import Engine, Handle, RequestOutput
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

__all__ = ["DEFAULT_WORKLOADS", "WORKLOADS", "Load", "Measurement"]

TRANSFORMERS, ENGINE = "transformers", "engine"
DECODE = "decode, one request"
TTFT = "first token, new image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked. The defaults are those of the published figures."""

    text_tokens: int = 64
    new_tokens: int = 100
    concurrency: int = 64
    batch: int = 32
    """Requests that transformers answers together in its faster way for many requests."""
    runs: int = 5


@dataclass(frozen=True, slots=True)
class Measurement:
    """One quantity measured in one implementation."""

    workload: str
    implementation: str
    unit: str
    value: float
    """The median of the runs."""
    p95: float
    """95 % of the runs were at least as good; with few runs, the worst."""
    higher_is_better: bool = True

    def better_than(self, other: Measurement) -> float:
        """How many times better this is."""
        ratio = self.value / other.value
        return ratio if self.higher_is_better else 1 / ratio


def _decode(model: BenchModel, load: Load) -> list[Measurement]:
    """One request, tokens a second after the first one."""
    engine = model.engine(max_num_seqs=1)
    return _both(
        DECODE, "tokens/s", True, load, engine,
        lambda seed: _generate_rate(model, load, seed),
        lambda seed: _engine_rate(model, load, engine, seed),
    )  # fmt: skip


def _compiled(model: BenchModel, load: Load) -> list[Measurement]:
    """The same by transformers with a static cache, for which it compiles its steps on CUDA.

    Compilation takes minutes.
    """
    seeds = range(load.runs + 2)
    rates = [_generate_rate(model, load, seed, static_cache=True) for seed in seeds][2:]
    return [_median(DECODE, f"{TRANSFORMERS}, static and compiled", "tokens/s", rates, True)]


def _quantized(model: BenchModel, load: Load) -> list[Measurement]:
    """One request with quantized weights: speed, memory, and error of the logits."""
    ids = [token for token in model.prompt(3, 128)[0] if token != model.image_token_id]
    expected = decode_logits(model.model, ids)
    found = []
    bits: Literal[8, 4]
    for bits in (8, 4):
        name = f"{ENGINE}, {bits}-bit weights"
        before = allocated_bytes(model.model.device)
        small = replace(model, model=copy.deepcopy(model.model))
        quantize_model(small.model, Quantization(bits))
        found += _quantized_decode(small, load, name, before)
        error = logits_error(decode_logits(small.model, ids), expected)
        relative, same = 100 * error.relative, 100 * error.agreement
        found.append(Measurement("error of logits", name, "%", relative, relative, False))
        found.append(Measurement("same most probable token", name, "%", same, same))
        del small
    return found


def _quantized_decode(
    model: BenchModel, load: Load, name: str, allocated: int
) -> list[Measurement]:
    """Speed and memory; `allocated`: bytes in use before this model was made."""
    device = model.model.device
    allocated_bytes(device)
    reset_peak(device)
    tokens = load.text_tokens + model.tokens_per_view + load.new_tokens
    engine = model.engine(max_num_seqs=1, kv_cache_tokens=tokens + 16)
    engine.warm_up()
    rates = [_engine_rate(model, load, engine, seed) for seed in range(load.runs + 1)][1:]
    speed = _median(DECODE, name, "tokens/s", rates, True)
    read = decode_bytes(model.model) * speed.value / 1e9
    found = [speed, Measurement("weights read in it", name, "GB/s", read, read)]
    if device.type == "cuda":
        memory = (peak_bytes(device) - allocated) / 1e9
        what = "model with one image's cache"
        found.append(Measurement(what, name, "GB", memory, memory, False))
    return found


def _generate_rate(model: BenchModel, load: Load, seed: int, static_cache: bool = False) -> float:
    timer = TokenTimer()
    prompt = model.prompt(seed, load.text_tokens)
    model.generate([prompt], load.new_tokens, timer, static_cache=static_cache)
    _, first, *_, last = timer.times  # the prompt comes before the first token
    return (load.new_tokens - 1) / (last - first)


def _engine_rate(model: BenchModel, load: Load, engine: Engine, seed: int) -> float:
    output = _submit(engine, model.prompt(seed, load.text_tokens), load.new_tokens).result()
    return (load.new_tokens - 1) / max(output.decode_seconds, 1e-9)


def _first_token(model: BenchModel, load: Load) -> list[Measurement]:
    """A new image and its question, to the first token."""
    engine = model.engine(max_num_seqs=1)

    def of_transformers(seed: int) -> float:
        prompt = model.prompt(seed, load.text_tokens)
        return 1e3 * _seconds(model, lambda: model.generate([prompt], 1))

    def of_engine(seed: int) -> float:
        prompt = model.prompt(seed, load.text_tokens)
        return 1e3 * _seconds(model, lambda: _submit(engine, prompt, 1).result())

    return _both(TTFT, "ms", False, load, engine, of_transformers, of_engine)


def _concurrent(model: BenchModel, load: Load) -> list[Measurement]:
    """Many requests at once, each with its own image; with the engine, also how long each takes."""
    prompts = [model.prompt(seed, load.text_tokens) for seed in range(load.concurrency)]

    def transformers_rate(batch: int) -> float:
        # One by one a few are enough to measure.
        asked = prompts[: 4 if batch == 1 else None]

        def run() -> None:
            for start in range(0, len(asked), batch):
                model.generate(asked[start : start + batch], load.new_tokens)

        return len(asked) / _seconds(model, run)

    tokens = load.text_tokens + model.tokens_per_view + load.new_tokens
    engine = model.engine(
        kv_cache_tokens=load.concurrency * (tokens + 32), max_num_seqs=load.concurrency
    )
    outputs: list[RequestOutput] = []

    def run() -> None:
        handles = [_submit(engine, prompt, load.new_tokens) for prompt in prompts]
        outputs.extend(handle.result() for handle in handles)

    engine.warm_up()
    _seconds(model, lambda: _submit(engine, model.prompt(-1, 8), 2).result())
    name = f"{load.concurrency} requests at once"
    rates = {
        f"{TRANSFORMERS}, one by one": transformers_rate(1),
        f"{TRANSFORMERS}, {load.batch} together": transformers_rate(load.batch),
        ENGINE: load.concurrency / _seconds(model, run),
    }
    found = [Measurement(name, way, "requests/s", rate, rate) for way, rate in rates.items()]
    first = [1e3 * one.prefill_seconds for one in outputs]
    whole = [1e3 * (one.prefill_seconds + one.decode_seconds) for one in outputs]
    found.append(_median(f"{name}, first token", ENGINE, "ms", first, False))
    found.append(_median(f"{name}, whole answer", ENGINE, "ms", whole, False))
    stats = engine.stats()
    if stats.graphs:
        seconds = stats.graph_capture_seconds
        what = f"{stats.graphs} graphs captured"
        found.append(Measurement(what, ENGINE, "s", seconds, seconds, False))
    return found


def _second_turn(model: BenchModel, load: Load) -> list[Measurement]:
    """The next question about the same image, to its first token; beside the engine's first turn."""
    engine = model.engine(max_num_seqs=1)
    first_turns: list[float] = []
    name = "first token, second turn"

    def second_prompt(seed: int) -> Prompt:
        ids, pixels = model.prompt(seed, load.text_tokens)
        began = time.perf_counter()
        answer = _submit(engine, (ids, pixels), 8)
        next(answer)
        first_turns.append(1e3 * (time.perf_counter() - began))
        more, _ = model.prompt(seed + 1, 16)
        question = [token for token in more if token != model.image_token_id]
        return [*ids, *answer.result().tokens, *question], pixels

    def of_transformers(seed: int) -> float:
        prompt = second_prompt(seed)
        return 1e3 * _seconds(model, lambda: model.generate([prompt], 1))

    def of_engine(seed: int) -> float:
        engine.clear_cache()
        prompt = second_prompt(seed)
        return 1e3 * _seconds(model, lambda: _submit(engine, prompt, 1).result())

    found = _both(name, "ms", False, load, engine, of_transformers, of_engine)
    return [*found, _median(name, "engine, first turn", "ms", first_turns[-load.runs :], False)]


WORKLOADS: dict[str, Callable[[BenchModel, Load], list[Measurement]]] = {
    "decode": _decode,
    "first-token": _first_token,
    "concurrent": _concurrent,
    "second-turn": _second_turn,
    "quantized": _quantized,
    "compiled": _compiled,
}
"""The workloads by name."""

DEFAULT_WORKLOADS = tuple(WORKLOADS)[:4]


def _submit(engine: Engine, prompt: Prompt, count: int) -> Handle:
    return engine.submit(*prompt, SamplingParams(max_new_tokens=count))


def _both(
    workload: str,
    unit: str,
    higher: bool,
    load: Load,
    engine: Engine,
    of_transformers: Callable[[int], float],
    of_engine: Callable[[int], float],
) -> list[Measurement]:
    """Both implementations in turn, each run with its own seed, after a run of each to warm up."""
    engine.warm_up()
    found: dict[str, list[float]] = {TRANSFORMERS: [], ENGINE: []}
    for run in range(load.runs + 1):
        for offset, once in enumerate((of_transformers, of_engine)):
            value = once(1000 * run + 10 * offset)
            if run:
                found[ENGINE if offset else TRANSFORMERS].append(value)
    return [_median(workload, name, unit, values, higher) for name, values in found.items()]


def _median(
    workload: str, name: str, unit: str, values: Sequence[float], higher: bool
) -> Measurement:
    ordered = sorted(values, reverse=higher)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return Measurement(workload, name, unit, statistics.median(values), p95, higher)


def _seconds(model: BenchModel, work: Callable[[], object]) -> float:
    synchronize(model.model.device)
    began = time.perf_counter()
    work()
    synchronize(model.model.device)
    return time.perf_counter() - began
