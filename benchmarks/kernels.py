"""The kernels of `vip_llava.kernels` at the shapes of a 7B Llama, beside torch.

Every time is the median over replays of a CUDA graph that cycles through several sets of weights,
more than the L2 cache holds. GB/s counts bytes that must be read once; the copy counts bytes read and
written. The error is relative to float32. A layer is a whole layer of a decode step, as the engine
calls it, over four layers in turn.

    python benchmarks/kernels.py [--rows 1,8,64] [--bits 16,8,4] [--only products,attention,layers]
    python benchmarks/kernels.py --tiny              # on a CPU, by Triton's interpreter
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

if "--tiny" in sys.argv:  # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from torch import Tensor

from vip_llava.kernels import DecodeBatch, Dense, Int4, Int8, Matrix, Norm, fused, reference


@dataclass(frozen=True)
class Size:
    """Widths of a model, length of its sequences, and more bytes than a cache holds."""

    width: int = 4096
    inner: int = 11008
    words: int = 32064
    heads: int = 32
    kv_heads: int = 32
    length: int = 704
    cold: int = 600 << 20
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16

    @property
    def head(self) -> int:
        return self.width // self.heads


TINY = Size(64, 96, 100, 4, 4, 40, 1 << 10, "cpu")


def random(size: Size, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=size.device, dtype=size.dtype) * scale


def matrix(size: Size, bits: int, outputs: int, inputs: int) -> Matrix:
    if bits == 16:
        return Dense(random(size, outputs, inputs, scale=0.02))
    at: dict[str, Any] = {"device": size.device}
    if bits == 8:
        whole = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, **at)
        return Int8(whole, random(size, outputs, scale=1e-3))
    packed = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, **at)
    shape = (outputs, inputs // 32, 1)
    return Int4(packed, random(size, *shape, scale=1e-2), random(size, *shape, scale=1e-2))


def bytes_of(*matrices: Matrix) -> int:
    tensors = [getattr(m, name, None) for m in matrices for name in ("weight", "packed", "low")]
    return sum(
        tensor.nbytes * (2 if tensor.ndim == 3 else 1) for tensor in tensors if tensor is not None
    )


def microseconds(size: Size, calls: Sequence[Callable[[], Any]], repeats: int = 15) -> float:
    """Of one call; all calls in turn are one graph."""
    for call in calls[:2]:
        call()
    if size.device == "cpu":
        began = time.perf_counter()
        calls[0]()
        return (time.perf_counter() - began) * 1e6
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(found)


@dataclass(frozen=True)
class Product:
    """A product of a layer: outputs of its matrices, inputs, and what is fused into it."""

    name: str
    outputs: tuple[int, ...]
    inputs: int
    norm: bool = False
    gated: bool = False
    residual: bool = False

    def call(
        self, kernels: Any, x: Tensor, weights: list[Matrix], norm: Norm, more: Tensor
    ) -> Tensor:
        normed = norm if self.norm else None
        if self.gated:
            found: Tensor = kernels.swiglu(x, *weights, norm=normed)
            return found
        sums: Tensor = kernels.linear(x, weights, more if self.residual else None, normed)
        return sums


def products(size: Size) -> list[Product]:
    width, kv = size.width, size.kv_heads * size.head
    return [
        Product("qkv", (width, kv, kv), width, norm=True),
        Product("out", (width,), width, residual=True),
        Product("gate-up", (size.inner, size.inner), width, norm=True, gated=True),
        Product("down", (width,), size.inner, residual=True),
        Product("head", (size.words,), width, norm=True),
    ]


class Case:
    """A product with enough sets of weights that none is cached when it is used again."""

    def __init__(self, size: Size, product: Product, bits: int, rows: int) -> None:
        self.size, self.product, self.bits, self.rows = size, product, bits, rows
        first = self._weights()
        self.bytes = bytes_of(*first)
        self.sets = [first, *(self._weights() for _ in range(size.cold // self.bytes))]
        self.x = random(size, rows, product.inputs)
        self.norm = Norm(random(size, product.inputs), 1e-5)
        self.more = random(size, rows, sum(product.outputs))

    def _weights(self) -> list[Matrix]:
        product = self.product
        return [matrix(self.size, self.bits, out, product.inputs) for out in product.outputs]

    def run(self, kernels: Any, weights: list[Matrix]) -> Tensor:
        return self.product.call(kernels, self.x, weights, self.norm, self.more)

    def time(self, kernels: Any) -> float:
        count = max(len(self.sets), 12)
        sets = list(itertools.islice(itertools.cycle(self.sets), count))
        return microseconds(self.size, [partial(self.run, kernels, one) for one in sets])

    def error(self) -> float:
        """Of the fused kernel, against the same in float32."""
        found = self.run(fused, self.sets[0])
        wide: list[Matrix] = [in_float32(one) for one in self.sets[0]]
        norm = Norm(self.norm.weight.float(), self.norm.eps)
        wanted = self.product.call(reference, self.x.float(), wide, norm, self.more.float())
        return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def in_float32(one: Matrix) -> Dense:
    if isinstance(one, Dense):
        return Dense(one.weight.float())
    if isinstance(one, Int8):
        return Dense(reference.dequantized(replace(one, scale=one.scale.float())))
    return Dense(reference.dequantized(replace(one, scale=one.scale.float(), low=one.low.float())))


def show_products(size: Size, bits: list[int], rows: list[int]) -> Iterator[str]:
    yield f"{'product':9} bits rows {'us':>8} {'GB/s':>6} {'torch us':>9} {'error':>8}"
    for bit, row, product in itertools.product(bits, rows, products(size)):
        if product.name == "head" and bit != 16:
            continue
        case = Case(size, product, bit, row)
        ours, theirs = case.time(fused), case.time(reference)
        rate = case.bytes / ours / 1e3
        yield (
            f"{product.name:9} {bit:4} {row:4} {ours:8.1f} {rate:6.0f} {theirs:9.1f} {case.error():8.1e}"
        )


class Sequences:
    """A KV cache full of sequences of one length, for the decode of their next tokens."""

    def __init__(self, size: Size, count: int, layers: int) -> None:
        device, kv_heads, head = size.device, size.kv_heads, size.head
        blocks = size.length // 16 + 1
        order = torch.randperm(count * blocks, device=device).to(torch.int32)
        table = order.view(count, blocks)
        lengths = torch.full((count,), size.length, dtype=torch.int32, device=device)
        slots = table[:, (size.length - 1) // 16] * 16 + (size.length - 1) % 16
        self.batch = DecodeBatch(slots, table, lengths)
        self.cache = [
            (
                random(size, count * blocks * 16, kv_heads, head),
                random(size, count * blocks * 16, kv_heads, head),
            )
            for _ in range(layers)
        ]
        self.rotary = random(size, count, head), random(size, count, head)
        self.size, self.count = size, count
        self.bytes = 2 * count * size.length * kv_heads * head * size.dtype.itemsize

    def step(self, kernels: Any, layer: int, qkv: Tensor) -> Tensor:
        size, shape = self.size, (self.count, -1, self.size.head)
        width, kv = size.width, size.kv_heads * size.head
        states = tuple(part.view(shape) for part in qkv.split([width, kv, kv], dim=1))
        scale = size.head**-0.5
        found: Tensor = kernels.decode_attention(
            states, self.rotary, self.cache[layer], self.batch, scale
        )
        return found


def show_attention(size: Size, rows: list[int]) -> Iterator[str]:
    yield f"{'attention':9} rows {'us':>8} {'GB/s':>6} {'error':>8}"
    for row in rows:
        one = row * size.length * size.kv_heads * size.head * 2 * size.dtype.itemsize
        layers = min(16, 1 + size.cold // one)
        sequences = Sequences(size, row, layers)
        qkv = random(size, row, (size.heads + 2 * size.kv_heads) * size.head)
        order = [at % layers for at in range(max(12, layers))]
        took = microseconds(size, [partial(sequences.step, fused, at, qkv) for at in order])
        found, wanted = (sequences.step(kernels, 0, qkv).double() for kernels in (fused, reference))
        error = float((found - wanted).norm() / wanted.norm())
        yield f"{'paged':9} {row:4} {took:8.1f} {sequences.bytes / took / 1e3:6.0f} {error:8.1e}"


class Layers:
    """A few whole layers, and sequences in the middle of their decode."""

    def __init__(self, size: Size, bits: int, rows: int, count: int) -> None:
        self.norm = Norm(random(size, size.width), 1e-5)
        self.hidden = random(size, rows, size.width)
        self.sequences = Sequences(size, rows, count)
        self.weights = [
            {
                one.name: [matrix(size, bits, out, one.inputs) for out in one.outputs]
                for one in products(size)[:4]
            }
            for _ in range(count)
        ]
        read = bytes_of(*(one for part in self.weights[0].values() for one in part))
        self.bytes = read + self.sequences.bytes

    def run(self, at: int) -> Tensor:
        mine, norm = self.weights[at % len(self.weights)], self.norm
        qkv = fused.linear(self.hidden, mine["qkv"], norm=norm)
        found = self.sequences.step(fused, at % len(self.weights), qkv).flatten(1)
        after = fused.linear(found, mine["out"], self.hidden)
        inner = fused.swiglu(after, *mine["gate-up"], norm=norm)
        return fused.linear(inner, mine["down"], after)


def show_layers(size: Size, bits: list[int], rows: list[int]) -> Iterator[str]:
    yield f"{'layer':9} bits rows {'us':>8} {'GB/s':>6}   tokens/s of 32 layers and the head"
    for bit, row in itertools.product(bits, rows):
        layers = Layers(size, bit, row, 4)
        took = microseconds(size, [partial(layers.run, at) for at in range(8)])
        head = Case(size, products(size)[-1], 16, row).time(fused)
        rate, each = layers.bytes / took / 1e3, row * 1e6 / (32 * took + head)
        yield f"{'layer':9} {bit:4} {row:4} {took:8.1f} {rate:6.0f}   {each:.0f}"


def copy_rate(size: Size) -> str:
    one = torch.empty(size.cold, dtype=torch.uint8, device=size.device).random_()
    other = torch.empty_like(one)
    took = microseconds(size, [lambda: other.copy_(one), lambda: one.copy_(other)])
    return f"copy: {2 * size.cold / took / 1e3:.0f} GB/s"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=numbers, default=[1, 8, 64])
    parser.add_argument("--bits", type=numbers, default=[16, 8, 4])
    parser.add_argument("--only", default="products,attention,layers")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    size = TINY if options.tiny else Size()
    device = "the interpreter" if options.tiny else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, triton {triton.__version__}; {copy_rate(size)}")
    parts = {
        "products": lambda: show_products(size, options.bits, options.rows),
        "attention": lambda: show_attention(size, options.rows),
        "layers": lambda: show_layers(size, options.bits, options.rows),
    }
    for name in options.only.split(","):
        for line in parts[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
