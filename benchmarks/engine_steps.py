"""Where the time of the engine's steps goes on a GPU: decode, prefill, image encoding, the host.

    python benchmarks/engine_steps.py [--tiny] [--only PART ...] [--profile]

A 7B model with random weights, first in bfloat16, then quantized; under a minute on an H200. `--tiny`
runs the same on a CPU with a tiny model, where the figures have no meaning. `--only` selects parts:
first, concurrent, decode and quantized. `--profile` also lists the kernels. It uses private members
of the engine and has to follow its changes. The table is on stdout.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from vip_llava.bench.bench_model import BenchModel, random_model
from vip_llava.bench.roofline import (
    Roofline,
    decode_bytes,
    measure_roofline,
    peak_bytes,
    synchronize,
)
from vip_llava.engine import Engine
from vip_llava.engine.decode_graphs import step_views
from vip_llava.engine.encoder_cache import view_digests
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

TEXT = 64
CONCURRENCY = 64
PARTS = ["first", "concurrent", "decode", "quantized"]


def say(what: str, value: float, unit: str, note: str = "") -> None:
    """Print a row of the table."""
    print(f"| {what} | {value:.4g} | {unit} | {note} |", flush=True)


def median_ms(device: torch.device, work: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of `work`, repeated without synchronizing; the median of five series."""
    work()
    found = []
    for _ in range(5):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        synchronize(device)
        found.append(1e3 * (time.perf_counter() - began) / times)
    return statistics.median(found)


def engine_of(bench_model: BenchModel, most: int) -> Engine:
    """An engine with room for `most` requests."""
    tokens = bench_model.tokens_per_view + TEXT + 160
    return bench_model.engine(cuda_graphs=True, kv_cache_tokens=most * tokens, max_num_seqs=most)


@torch.inference_mode()
def decode_graph(
    bench_model: BenchModel, engine: Engine, size: int
) -> tuple[Callable[[], object], int]:
    """The decode graph of `size` sequences, each in the middle of its text, and their length."""
    device = bench_model.model.device
    runner = engine._core.runner
    graphs: Any = runner.decode_graphs
    if graphs is None:
        raise SystemExit(f"no graphs: {runner.fallback or 'the model is not supported'}")
    cache = runner.kv_cache
    length = bench_model.tokens_per_view + TEXT + 60
    cache.reserve(cache.num_slots)
    graphs._llama.allocate_kv_cache()
    for keys, values in cache._layers.values():
        keys.normal_()
        values.normal_()
    graph = graphs._graph(size)
    fields, table, _ = step_views(graphs._numbers[graphs._top :], size, graphs._width)
    per = -(-(length + 1) // 16)
    blocks = torch.arange(size * per, dtype=torch.int32, device=device).view(size, per)
    table[:, :per] = blocks
    fields[0], fields[2], fields[4] = 5, length, length + 1
    fields[1] = torch.arange(graphs._top, graphs._top + size, device=device)
    fields[3] = blocks[:, length // 16] * 16 + length % 16
    return graph, length


@torch.inference_mode()
def replays(
    name: str, bench_model: BenchModel, engine: Engine, sizes: tuple[int, ...], best: Roofline
) -> None:
    """Decode graphs of several numbers of sequences, each in the middle of its text."""
    for size in sizes:
        graph, length = decode_graph(bench_model, engine, size)
        took = median_ms(bench_model.model.device, graph)
        graphs: Any = engine._core.runner.decode_graphs
        read = decode_bytes(bench_model.model) + size * length * graphs._llama.bytes_per_slot
        rate = read / took / 1e6
        note = f"{rate:.0f} GB/s, {100 * rate / best.copy_gigabytes:.0f} % of a copy"
        say(f"{name}: decode graph of {size}, {length} tokens each", took, "ms", note)


@torch.inference_mode()
def kernels(what: str, device: torch.device, work: Callable[[], object]) -> None:
    """The slowest kernels, with their total and mean time."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as watched:
        work()
        synchronize(device)
    found = sorted(watched.key_averages(), key=lambda one: -one.self_device_time_total)
    for one in found[:12]:
        took, each = one.self_device_time_total, one.self_device_time_total / max(1, one.count)
        say(f"{what}: {one.key[:70]}", took / 1e3, "ms", f"{one.count} of {each:.1f} us")


def decode(name: str, bench_model: BenchModel, engine: Engine, **params: Any) -> None:
    """One request of a hundred tokens, through the whole engine."""
    rates = []
    for seed in range(4):
        sampling = SamplingParams(max_new_tokens=100, **params)
        answer = engine.submit(*bench_model.prompt(50 + seed, TEXT), sampling).result()
        rates.append((len(answer.tokens) - 1) / answer.decode_seconds)
    say(name, statistics.median(rates[1:]), "tokens/s", f"lowest {min(rates[1:]):.1f}")


@torch.inference_mode()
def first_token(bench_model: BenchModel, engine: Engine, profiled: bool) -> None:
    """A new image and its question, whole and in parts."""
    device = bench_model.model.device
    found = []
    for seed in range(7):
        asked = bench_model.prompt(900 + seed, TEXT)
        synchronize(device)
        began = time.perf_counter()
        engine.submit(*asked, SamplingParams(max_new_tokens=1)).result()
        found.append(1e3 * (time.perf_counter() - began))
    say("first token, new image", statistics.median(found[2:]), "ms")
    _, pixels = bench_model.prompt(1, TEXT)
    say("of it: hash of the image", median_ms(device, lambda: view_digests(pixels)), "ms", "host")
    for count in (1, 2, 8):
        views = pixels.repeat(count, 1, 1, 1)
        took = median_ms(device, lambda views=views: engine._core.encoder._run(views), 5)  # type: ignore[misc]
        say(f"images encoded together: {count}", took, "ms", "graph")
    for prompt in (TEXT + bench_model.tokens_per_view, 24):
        seq = scheduled(engine, prompt)

        def work(seq: Any = seq, prompt: int = prompt) -> object:
            return engine._core.runner.execute([(seq, prompt)])

        took = median_ms(device, work, 5)
        say(f"a prompt of {prompt} tokens, with its logits", took, "ms", "graph")
        began = time.perf_counter()
        work()
        launched = 1e3 * (time.perf_counter() - began)
        say("of it: until all of it is launched", launched, "ms", "host")
        if profiled:
            kernels(f"prompt of {prompt}", device, work)
        engine._core.cancel(seq)
        engine._core.drain()
    second_turn(bench_model, engine)


def scheduled(engine: Engine, tokens: int) -> Any:
    """A sequence that is scheduled to prefill this many tokens."""
    ids = torch.randint(1, 300, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
    handle = engine.submit(ids, None, SamplingParams(max_new_tokens=1))
    engine._core.drain()
    engine._core.scheduler.schedule()
    return handle._sequence


def second_turn(bench_model: BenchModel, engine: Engine) -> None:
    """The next question about the same image."""
    found = []
    for seed in range(7):
        ids, pixels = bench_model.prompt(700 + seed, TEXT)
        first = engine.submit(ids, pixels, SamplingParams(max_new_tokens=8)).result()
        more = [*ids, *first.tokens, *ids[-16:]]
        began = time.perf_counter()
        engine.submit(more, pixels, SamplingParams(max_new_tokens=1)).result()
        found.append(1e3 * (time.perf_counter() - began))
    say("first token, second turn", statistics.median(found[2:]), "ms")


def concurrent(bench_model: BenchModel, engine: Engine) -> None:
    """Many requests at once, each with its own image; the first turn is warm-up."""
    for turn in range(2):
        engine.clear_cache()
        asked = [
            bench_model.prompt(2000 + 100 * turn + number, TEXT) for number in range(CONCURRENCY)
        ]
        synchronize(bench_model.model.device)
        began, steps = time.perf_counter(), engine.stats().steps
        handles = [engine.submit(*one, SamplingParams(max_new_tokens=100)) for one in asked]
        while not all(handle._sequence.first_token_time for handle in handles):
            engine.step()
        read, made = time.perf_counter(), engine.stats().steps
        for handle in handles:
            handle.result()
        ended = time.perf_counter()
    note = (
        f"all first tokens after {read - began:.2f} s ({made - steps} steps), "
        f"the rest in {ended - read:.2f} s ({engine.stats().steps - made} steps)"
    )
    say(
        f"{CONCURRENCY} requests, 100 tokens each",
        CONCURRENCY / (ended - began),
        "requests/s",
        note,
    )


def quantized(bench_model: BenchModel, best: Roofline) -> None:
    """One request with quantized weights."""
    for bits in (8, 4):
        small = dataclasses.replace(bench_model, model=copy.deepcopy(bench_model.model))
        quantize_model(small.model, Quantization(bits))
        engine = engine_of(small, 1)
        engine.warm_up()
        replays(f"{bits} bits", small, engine, (1,), best)
        decode(f"{bits} bits: one request", small, engine)


def measure(tiny: bool, parts: list[str], profiled: bool) -> None:
    """Measure the selected parts."""
    device = torch.device("cpu" if tiny else "cuda")
    bench_model = random_model("tiny" if tiny else "7b", device)
    best = measure_roofline(device, bench_model.model.dtype)
    print("| what | value | unit | |\n|---|---|---|---|")
    say("a copy of 2 GB", best.copy_gigabytes, "GB/s")
    say("a product of 8192 squares", best.matmul_teraflops, "TFLOP/s")
    kind = str(bench_model.model.dtype).removeprefix("torch.")
    engine = engine_of(bench_model, CONCURRENCY)
    say(f"{kind}: graphs captured", engine.warm_up(), "s", f"{engine.stats().graphs} of them")
    if "first" in parts:
        first_token(bench_model, engine, profiled)
    if "concurrent" in parts:
        concurrent(bench_model, engine)
    if "decode" in parts:
        replays(kind, bench_model, engine, (1, 8, CONCURRENCY), best)
        decode(f"{kind}: one request", bench_model, engine)
        name = f"{kind}: one request with logprobs (no step ahead)"
        decode(name, bench_model, engine, logprobs=0)
        decode(
            f"{kind}: one request, temperature 0.2", bench_model, engine, temperature=0.2, seed=1
        )
    if profiled:
        kernels("step of 1", device, decode_graph(bench_model, engine, 1)[0])
    say("most memory held", peak_bytes(device) / 1e9, "GB", engine.stats().fallback)
    if "quantized" in parts:
        quantized(bench_model, best)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--profile", action="store_true", help="list kernels")
    given = parser.parse_args()
    measure(given.tiny, given.only, given.profile)
