"""Where the time of the engine's steps goes on a GPU: recorded steps, prompts, images, the host.

    python benchmarks/engine_steps.py [--tiny] [--only PART ...] [--profile]

A 7B model with random weights, first in bfloat16, then with small weights; under a minute on an
H200. `--tiny` runs the same on a CPU with a tiny model, where the figures mean nothing. `--only` takes
some parts of it: decode, first, many, attention (which layouts of it are fastest) and small.
`--profile` also lists the kernels of recorded steps. It looks inside the engine, so it may have to
follow changes there. The table is on stdout.
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

from vip_llava.bench.bench_model import Subject, random_subject
from vip_llava.bench.roofline import Ceilings, ceilings, finished, peak_bytes, step_bytes
from vip_llava.engine import Engine
from vip_llava.engine.decode_graphs import _parted
from vip_llava.engine.digests import view_digests
from vip_llava.engine.portrait import portrait
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

TEXT = 64
ASKERS = 64
PARTS = ["first", "many", "decode", "small", "attention"]
# Tokens looked at together, warps, and into how many parts a text is split.
LAYOUTS = [(32, 4, 16), (32, 4, 8), (32, 4, 32), (64, 4, 8), (64, 4, 16), (64, 8, 16), (16, 4, 32)]


def say(what: str, value: float, unit: str, note: str = "") -> None:
    """One row of the table, at once."""
    print(f"| {what} | {value:.4g} | {unit} | {note} |", flush=True)


def middle_ms(device: torch.device, work: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of `work`, repeated without waiting in between; the middle of five such rows."""
    work()
    found = []
    for _ in range(5):
        finished(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        finished(device)
        found.append(1e3 * (time.perf_counter() - began) / times)
    return statistics.median(found)


def engine_of(subject: Subject, most: int) -> Engine:
    """One with room for so many askers."""
    tokens = subject.tokens_per_view + TEXT + 160
    return subject.engine(captured=True, kv_tokens=most * tokens, max_running=most)


@torch.inference_mode()
def recorded(subject: Subject, engine: Engine, size: int) -> tuple[Callable[[], object], int]:
    """The step of `size` requests, each in the middle of its text, and how many tokens that is."""
    device = subject.model.device
    step: Any = engine._paths.decode
    if step is None:
        raise SystemExit(
            f"nothing is recorded: {engine.stats().closed or 'the model does not fit'}"
        )
    memory = engine._memory
    length = subject.tokens_per_view + TEXT + 60
    memory.reach(memory.places)
    step._llama.lay_out()
    for keys, values in memory._layers.values():
        keys.normal_()
        values.normal_()
    again = step._recording(size)
    fields, table, _ = _parted(step._numbers[step._top :], size, step._width)
    per = -(-(length + 1) // 16)
    blocks = torch.arange(size * per, dtype=torch.int32, device=device).view(size, per)
    table[:, :per] = blocks
    fields[0], fields[2], fields[4] = 5, length, length + 1
    fields[1] = torch.arange(step._top, step._top + size, device=device)
    fields[3] = blocks[:, length // 16] * 16 + length % 16
    return again, length


@torch.inference_mode()
def replays(
    name: str, subject: Subject, engine: Engine, sizes: tuple[int, ...], best: Ceilings
) -> None:
    """Recorded steps of so many requests, each in the middle of its text."""
    for size in sizes:
        again, length = recorded(subject, engine, size)
        took = middle_ms(subject.model.device, again)
        step: Any = engine._paths.decode
        read = step_bytes(subject.model) + size * length * step._llama.bytes_per_place
        rate = read / took / 1e6
        note = f"{rate:.0f} GB/s, {100 * rate / best.copy_gigabytes:.0f} % of a copy"
        say(f"{name}: recorded step of {size}, {length} tokens each", took, "ms", note)


@torch.inference_mode()
def attention(subject: Subject, engine: Engine) -> None:
    """A recorded step of one request with attention in several layouts."""
    from vip_llava.kernels.fused import tuned_configs as choices

    known = choices.attention_setting
    step: Any = engine._paths.decode
    for tile, warps, parts in LAYOUTS:
        setting = choices.AttentionSetting(tile, warps, 2, parts)
        choices.attention_setting = lambda *_, setting=setting: setting
        step._recordings.pop(1, None)
        again, length = recorded(subject, engine, 1)
        took = middle_ms(subject.model.device, again)
        say(f"step of 1, {length} tokens: tile {tile}, warps {warps}, parts {parts}", took, "ms")
    choices.attention_setting = known
    step._recordings.pop(1, None)


@torch.inference_mode()
def kernels(what: str, device: torch.device, work: Callable[[], object]) -> None:
    """The kernels that take longest, with their time in all and each."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as watched:
        work()
        finished(device)
    found = sorted(watched.key_averages(), key=lambda one: -one.self_device_time_total)
    for one in found[:12]:
        took, each = one.self_device_time_total, one.self_device_time_total / max(1, one.count)
        say(f"{what}: {one.key[:70]}", took / 1e3, "ms", f"{one.count} of {each:.1f} us")


def decode(name: str, subject: Subject, engine: Engine, **params: Any) -> None:
    """One asker, a hundred tokens, through the whole engine."""
    rates = []
    for seed in range(4):
        sampling = SamplingParams(max_new_tokens=100, **params)
        answer = engine.submit(*subject.prompt(50 + seed, TEXT), sampling).result()
        rates.append((len(answer.tokens) - 1) / answer.decode_seconds)
    say(name, statistics.median(rates[1:]), "tokens/s", f"lowest {min(rates[1:]):.1f}")


@torch.inference_mode()
def first_token(subject: Subject, engine: Engine, profiled: bool) -> None:
    """A new image and its question, whole and in parts."""
    device, model = subject.model.device, subject.model
    found = []
    for seed in range(7):
        asked = subject.prompt(900 + seed, TEXT)
        finished(device)
        began = time.perf_counter()
        engine.submit(*asked, SamplingParams(max_new_tokens=1)).result()
        found.append(1e3 * (time.perf_counter() - began))
    say("first token, new image", statistics.median(found[2:]), "ms")
    _, pixels = subject.prompt(1, TEXT)
    say("of it: hash of the image", middle_ms(device, lambda: view_digests(pixels)), "ms", "host")
    say("of it: portrait of the model", middle_ms(device, lambda: portrait(model)), "ms", "host")
    for count in (1, 2, 8):
        views = pixels.repeat(count, 1, 1, 1)
        took = middle_ms(device, lambda views=views: engine._vision._run(views), 5)  # type: ignore[misc]
        say(f"images encoded together: {count}", took, "ms", "recorded")
    for prompt in (TEXT + subject.tokens_per_view, 24):
        chosen = [(next_row(subject, engine, prompt), prompt)]
        took = middle_ms(device, lambda chosen=chosen: engine._runner(chosen), 5)  # type: ignore[misc]
        say(f"a prompt of {prompt} tokens, with its logits", took, "ms", "recorded")
        began = time.perf_counter()
        engine._runner(chosen)
        launched = 1e3 * (time.perf_counter() - began)
        say("of it: until all of it is launched", launched, "ms", "host")
        if profiled:
            kernels(f"prompt of {prompt}", device, lambda chosen=chosen: engine._runner(chosen))  # type: ignore[misc]
        chosen[0][0].cancelled = True
        engine._end(chosen[0][0])
    second_turn(subject, engine)


def next_row(subject: Subject, engine: Engine, tokens: int) -> Any:
    """A request that is about to read so many tokens."""
    ids = torch.randint(1, 300, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
    handle = engine.submit(ids, None, SamplingParams(max_new_tokens=1))
    engine._receive()
    engine._scheduler.plan()
    return handle._row


def second_turn(subject: Subject, engine: Engine) -> None:
    """The next question about the same image."""
    found = []
    for seed in range(7):
        ids, pixels = subject.prompt(700 + seed, TEXT)
        first = engine.submit(ids, pixels, SamplingParams(max_new_tokens=8)).result()
        more = [*ids, *first.tokens, *ids[-16:]]
        began = time.perf_counter()
        engine.submit(more, pixels, SamplingParams(max_new_tokens=1)).result()
        found.append(1e3 * (time.perf_counter() - began))
    say("first token, second turn", statistics.median(found[2:]), "ms")


def many(subject: Subject, engine: Engine) -> None:
    """Many askers at once, each with an image of its own; the first turn warms up."""
    for turn in range(2):
        engine.forget()
        asked = [subject.prompt(2000 + 100 * turn + number, TEXT) for number in range(ASKERS)]
        finished(subject.model.device)
        began, steps = time.perf_counter(), engine.stats().steps
        handles = [engine.submit(*one, SamplingParams(max_new_tokens=100)) for one in asked]
        while not all(handle._row.first_token_at for handle in handles):
            engine.step()
        read, made = time.perf_counter(), engine.stats().steps
        for handle in handles:
            handle.result()
        ended = time.perf_counter()
    note = (
        f"all first tokens after {read - began:.2f} s ({made - steps} steps), "
        f"the rest in {ended - read:.2f} s ({engine.stats().steps - made} steps)"
    )
    say(f"{ASKERS} askers, 100 tokens each", ASKERS / (ended - began), "requests/s", note)


def small_weights(subject: Subject, best: Ceilings) -> None:
    """One asker with small weights."""
    for bits in (8, 4):
        small = dataclasses.replace(subject, model=copy.deepcopy(subject.model))
        quantize_model(small.model, Quantization(bits))
        engine = engine_of(small, 1)
        engine.warm_up()
        replays(f"{bits} bits", small, engine, (1,), best)
        decode(f"{bits} bits: one asker", small, engine)


def measure(tiny: bool, parts: list[str], profiled: bool) -> None:
    """All of it, or some parts."""
    device = torch.device("cpu" if tiny else "cuda")
    subject = random_subject("tiny" if tiny else "7b", device)
    best = ceilings(device, subject.model.dtype)
    print("| what | value | unit | |\n|---|---|---|---|")
    say("a copy of 2 GB", best.copy_gigabytes, "GB/s")
    say("a product of 8192 squares", best.product_teraflops, "TFLOP/s")
    kind = str(subject.model.dtype).removeprefix("torch.")
    engine = engine_of(subject, ASKERS)
    say(f"{kind}: recordings made", engine.warm_up(), "s", f"{engine.stats().recordings} of them")
    if "first" in parts:
        first_token(subject, engine, profiled)
    if "many" in parts:
        many(subject, engine)
    if "decode" in parts:
        replays(kind, subject, engine, (1, 8, ASKERS), best)
        decode(f"{kind}: one asker", subject, engine)
        told = f"{kind}: one asker, probabilities told (no step ahead)"
        decode(told, subject, engine, logprobs=0)
        decode(f"{kind}: one asker, temperature 0.2", subject, engine, temperature=0.2, seed=1)
    if profiled:
        kernels("step of 1", device, recorded(subject, engine, 1)[0])
    if "attention" in parts:
        attention(subject, engine)
    say("most memory held", peak_bytes(device) / 1e9, "GB", engine.stats().closed)
    if "small" in parts:
        small_weights(subject, best)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS[:4])
    parser.add_argument("--profile", action="store_true", help="list kernels")
    given = parser.parse_args()
    measure(given.tiny, given.only, given.profile)
