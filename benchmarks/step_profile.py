"""Where the time of a stage-1 training step goes, and what its parts reach by themselves.

    python benchmarks/step_profile.py [products attention step]
    python benchmarks/step_profile.py --tiny        # a smoke test on a CPU

`products`: each matrix product of a layer, forward and backward, separate and fused. `attention`: the
kernels of torch, on rows of equal and different lengths. `step`: the kernels of a step of
`training_step.py`, by group.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

import training_step as steps

from vip_llava.training import attention

PARTS = ("products", "attention", "step")
GROUPS = {
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "mm_"),
    "attention": ("flash", "fmha", "cudnn", "sdpa"),
    "compiled elementwise": ("triton",),
    "copies": ("memcpy", "memset", "copy"),
}


class Setup:
    """The device with its dtype, the model's size and the rows of a step."""

    def __init__(self, tiny: bool) -> None:
        self.cuda = torch.cuda.is_available() and not tiny
        self.device = "cuda" if self.cuda else "cpu"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.size = steps.BIG if self.cuda else steps.TINY
        case = steps.CASES["stage1"]
        words = max(round(self.size.scale * case.longest), 3)
        self.rows = case.batch if self.cuda else 2
        self.length = words + self.size.view_tokens

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, call: Callable[[], Any], seconds: float = 0.12) -> float:
        """Seconds per call, averaged over as many calls as fit into `seconds`."""
        call()
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        once = time.perf_counter() - began
        count = max(int(seconds / once), 1) if self.cuda else 1
        began = time.perf_counter()
        for _ in range(count):
            call()
        self.wait()
        return (time.perf_counter() - began) / count

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def power(self) -> str:
        if not self.cuda:
            return ""
        asked = "--query-gpu=clocks.sm,power.draw,clocks_event_reasons.active"
        done = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip()


def products(setup: Setup) -> Iterator[str]:
    """TFLOP/s of x W^T (forward), of y W (backward), and of y W with a transposed copy of W."""
    text = setup.size.text
    width, middle = text["hidden_size"], text["intermediate_size"]
    shapes = {"q": (width, width), "qkv": (3 * width, width), "gate": (middle, width)}
    shapes |= {"gate+up": (2 * middle, width), "down": (width, middle)}
    tokens = setup.rows * setup.length
    square = 2 * width
    yield f"{'product':10}{'tokens':>8}{'forward':>10}{'backward':>10}{'W^T copy':>10}{'fp8 fast':>10}{'fp8':>10}  TFLOP/s"
    for name, (wide, deep), many in [
        *((name, shape, tokens) for name, shape in shapes.items()),
        ("square", (square, square), square),
    ]:
        x, y, weight = (
            setup.random(many, deep),
            setup.random(many, wide),
            setup.random(wide, deep),
        )
        turned = weight.t().contiguous()
        work = 2 * many * wide * deep / 1e12
        calls: list[Callable[[], Tensor]] = [
            lambda x=x, w=weight: F.linear(x, w),  # type: ignore[misc]
            lambda y=y, w=weight: y @ w,  # type: ignore[misc]
            lambda y=y, w=turned: F.linear(y, w),  # type: ignore[misc]
        ]
        found = "".join(f"{work / setup.time(call):>10.1f}" for call in calls)
        yield f"{name:10}{many:>8}{found}{_float8(setup, x, weight, work)}"
    if setup.cuda:
        x, weight = setup.random(tokens, width), setup.random(middle, width)
        for _ in range(400):
            F.linear(x, weight)
        yield f"while products run: {setup.power()}"
        setup.wait()


def _float8(setup: Setup, x: Tensor, weight: Tensor, work: float) -> str:
    """The forward product in float8 with a scale per row, with and without fast accumulation."""
    if not setup.cuda:
        return f"{'-':>10}"
    kind = torch.float8_e4m3fn
    scales = [torch.ones(len(each), 1, device=setup.device) for each in (x, weight)]
    narrow, turned = x.to(kind), weight.to(kind).t()
    found = ""
    for quick in (True, False):
        try:
            spent = setup.time(
                lambda quick=quick: torch._scaled_mm(  # type: ignore[misc]
                    narrow, turned, scales[0], scales[1].t(),
                    out_dtype=setup.dtype, use_fast_accum=quick,
                )
            )  # fmt: skip
        except Exception as error:
            return f"{found}  {type(error).__name__}: {str(error)[:80]}"
        found += f"{work / spent:>10.1f}"
    return found


def attention_kernels(setup: Setup) -> Iterator[str]:
    """Attention over rows of one length, and over rows that differ by a tenth."""
    rows, length = setup.rows, setup.length
    yield from time_attention(setup, [length] * rows)
    yield from time_attention(
        setup, [length + (at * 7 % 11 - 5) * length // 50 for at in range(rows)]
    )


def time_attention(setup: Setup, lengths: list[int]) -> Iterator[str]:
    """Milliseconds of one layer for all rows of a step: forward, and forward with backward."""
    heads = setup.size.text["num_attention_heads"]
    size = setup.size.text["hidden_size"] // heads
    rows, length = len(lengths), max(lengths)
    borders = torch.tensor([0, *lengths], device=setup.device).cumsum(0).to(torch.int32)
    q, k, v, slope = (setup.random(1, sum(lengths), heads, size) for _ in range(4))
    turned = [each.transpose(1, 2).requires_grad_() for each in (q, k, v)]

    def batch(backend: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            parts = (
                each[0].transpose(0, 1).unflatten(0, (rows, length)).transpose(1, 2)
                for each in turned
            )
            with torch.nn.attention.sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*parts, is_causal=True)
            return out.transpose(1, 2).reshape(1, -1, heads, size)

        return call

    def ours(run: Any) -> Callable[[], Tensor]:
        return lambda: run(*turned, borders, length, 0.0, None, None)

    kinds = torch.nn.attention.SDPBackend
    ways = {
        "varlen": ours(attention.varlen_attention),
        "one by one": ours(attention.sequential_attention),
    }
    ways |= {
        "batch, ours": ours(attention.batched_attention),
        "batch, flash": batch(kinds.FLASH_ATTENTION),
    }
    ways |= {"batch, cudnn": batch(kinds.CUDNN_ATTENTION)}
    ways["packed, cudnn"] = lambda: _Packed.apply(*turned, borders, length)
    first: Any = None
    yield f"{'attention':16}{'forward ms':>12}{'both ms':>10}{'error':>10}  up to {length} tokens"
    for name, call in ways.items():
        if name.startswith("batch") and min(lengths) < length:
            continue
        try:
            out = call()
            slopes = torch.autograd.grad(out, turned, slope)
            first = first or [out.detach(), *slopes]
            pairs = list(zip(first, [out.detach(), *slopes], strict=True))
            apart = max(float((a - b).norm() / a.norm()) for a, b in pairs)
            alone = setup.time(call)
            both = setup.time(lambda c=call: torch.autograd.grad(c(), turned, slope))
            yield f"{name:16}{alone * 1e3:>12.3f}{both * 1e3:>10.3f}{apart:>10.1e}"
        except Exception as error:
            yield f"{name:16} {type(error).__name__}: {str(error)[:150]}"


class _Packed(torch.autograd.Function):
    """cuDNN attention over packed rows, with torch's own operators."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int
    ) -> Tensor:
        given = [each[0].transpose(0, 1).contiguous() for each in (query, key, value)]
        found = torch.ops.aten._cudnn_attention_forward(
            *given, None, borders, borders, longest, longest, True, 0.0, True, False
        )
        ctx.longest = longest
        ctx.save_for_backward(*given, found[0], found[1], found[6], found[7], borders)
        return found[0].unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        *given, borders = ctx.saved_tensors
        made = torch.ops.aten._cudnn_attention_backward(
            slopes[0][0].contiguous(), *given, None, borders, borders,
            ctx.longest, ctx.longest, 0.0, True,
        )  # fmt: skip
        return (*(each.transpose(0, 1).unsqueeze(0) for each in made), None, None)


def step(setup: Setup) -> Iterator[str]:
    """Rows per second of the step, and its kernels by group."""
    case = steps.CASES["stage1"]
    model = steps.build_model(setup.size, setup.device, setup.dtype, 1)
    for layer in model.get_decoder().layers:
        layer.gradient_checkpointing = False
    rows = steps.make_samples(setup.size, case)[: setup.rows * 2]
    batches = [
        steps.to_device(batch, model)
        for batch in steps.packed_batches(rows, setup.rows * setup.length)
    ]
    steps.apply_optimizations(model, setup.cuda)
    optimizer = steps.adamw(model, 0.0)
    began = time.perf_counter()
    losses = [steps.train_step(model, batch, optimizer) for batch in batches]
    setup.wait()
    warm = time.perf_counter() - began
    times = []
    for batch in batches * 2:
        began = time.perf_counter()
        steps.train_step(model, batch, optimizer)
        setup.wait()
        times.append(time.perf_counter() - began)
    loss = sum(float(each) for each in losses) / len(losses)
    rates = " ".join(f"{setup.rows / each:.2f}" for each in times)
    yield f"{rates} rows/s, loss {loss:.5f}, warm-up {warm:.1f} s, {setup.power()}"
    yield from _profile(setup, lambda: steps.train_step(model, batches[0], optimizer))


def _profile(setup: Setup, call: Callable[[], Any]) -> Iterator[str]:
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if setup.cuda else kinds.CPU]) as found:
        began = time.perf_counter()
        call()
        setup.wait()
        whole = time.perf_counter() - began
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    groups: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        spent = (event.self_device_time_total if setup.cuda else event.self_cpu_time_total) / 1e3
        times[event.key] += spent
        counts[event.key] += event.count
        groups[_group(event.key)] += spent
    parts = ", ".join(f"{name} {spent:.1f}" for name, spent in groups.items())
    yield f"  ms: {parts}; busy {sum(groups.values()):.1f} of {whole * 1e3:.1f}"
    for key in sorted(times, key=lambda key: -times[key])[:28]:
        yield f"  {times[key]:>9.2f} ms {counts[key]:>6} x {_group(key)[:10]:10} {key[:110]}"


def _group(key: str) -> str:
    low = key.lower()
    # Names of cuDNN and FlashAttention kernels also contain "cutlass".
    for name in ("attention", "compiled elementwise", "products", "copies"):
        if any(mark in low for mark in GROUPS[name]):
            return name
    return "other"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all parts")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    given = parser.parse_args(arguments)
    setup = Setup(given.tiny)
    runs: dict[str, Callable[[Setup], Iterator[str]]] = {
        "products": products,
        "attention": attention_kernels,
        "step": step,
    }
    for part in given.parts or PARTS:
        began = time.perf_counter()
        for line in runs[part](setup):
            print(line, flush=True)
        print(f"({part}: {time.perf_counter() - began:.1f} s)", flush=True)
        if setup.cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
