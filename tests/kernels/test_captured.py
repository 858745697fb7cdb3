"""A layer of fused kernels as a CUDA graph: the same numbers, however kernels overlap."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import DecodeBatch, Dense, Int4, Int8, Norm, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WIDTH, INNER, HEADS, LENGTH = 1024, 2816, 8, 200
BF16 = torch.bfloat16
# A small scale spreads attention over many tokens; on a single one, rounding decides which.
SCALE = 0.01


class Layer:
    """A layer, and sequences in the middle of their decode."""

    def __init__(self, make: Any, bits: int, rows: int) -> None:
        self.norm = Norm(make.randn(WIDTH, dtype=BF16), 1e-5)
        square = [make.matrix(bits, WIDTH, WIDTH, BF16) for _ in range(4)]
        self.qkv, self.out = square[:3], square[3]
        self.gate, self.up = (make.matrix(bits, INNER, WIDTH, BF16) for _ in range(2))
        self.down = make.matrix(bits, WIDTH, INNER, BF16)
        blocks = LENGTH // 16 + 1
        order = torch.randperm(rows * blocks, generator=make.generator)
        table = order.view(rows, blocks).to("cuda", torch.int32)
        lengths = torch.arange(LENGTH, LENGTH - rows, -1, device="cuda", dtype=torch.int32)
        at = (lengths - 1).long()
        slots = table.gather(1, (at // 16).unsqueeze(1)).squeeze(1) * 16 + at % 16
        self.batch = DecodeBatch(slots, table, lengths)
        head = WIDTH // HEADS
        shape = (rows * blocks * 16, HEADS, head)
        self.cache = make.randn(*shape, dtype=BF16), make.randn(*shape, dtype=BF16)
        self.rotary = make.randn(rows, head, dtype=BF16), make.randn(rows, head, dtype=BF16)

    def run(self, kernels: Any, hidden: Tensor) -> Tensor:
        qkv = kernels.linear(hidden, self.qkv, norm=self.norm)
        states = tuple(part.view(len(hidden), HEADS, -1) for part in qkv.chunk(3, dim=1))
        found = kernels.decode_attention(states, self.rotary, self.cache, self.batch, SCALE)
        after = kernels.linear(found.flatten(1), [self.out], hidden)
        inner = kernels.swiglu(after, self.gate, self.up, self.norm)
        result: Tensor = kernels.linear(inner, [self.down], after)
        return result


def in_float32(thing: Any) -> Any:
    """The same numbers in float32, quantized weights dequantized."""
    if isinstance(thing, Int8):
        return Dense(reference.dequantized(replace(thing, scale=thing.scale.float())))
    if isinstance(thing, Int4):
        wide = replace(thing, scale=thing.scale.float(), low=thing.low.float())
        return Dense(reference.dequantized(wide))
    if isinstance(thing, Dense | Norm):
        return replace(thing, weight=thing.weight.float())
    if isinstance(thing, list | tuple):
        return type(thing)(in_float32(one) for one in thing)
    return thing.float() if isinstance(thing, Tensor) and thing.dtype == BF16 else thing


def exactly(layer: Layer) -> Layer:
    """The layer in float32, since bfloat16 would round the dequantized weights."""
    wide = copy.copy(layer)
    vars(wide).update({name: in_float32(thing) for name, thing in vars(layer).items()})
    return wide


@pytest.mark.parametrize("rows", [1, 5, 64, 100])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_captured_layer(
    fused: Any, make: Any, monkeypatch: pytest.MonkeyPatch, bits: int, rows: int
) -> None:
    from vip_llava.kernels.fused import launch

    layer = Layer(make, bits, rows)
    hidden = make.randn(rows, WIDTH, dtype=BF16)
    # The same layer four times: many kernels that each need the result of the one before.
    monkeypatch.setattr(launch, "OVERLAP", False)
    wanted = hidden
    for _ in range(4):
        wanted = layer.run(fused, wanted)
    near = exactly(layer).run(reference, hidden.float())
    ours, theirs = ((layer.run(kernels, hidden) - near).norm() for kernels in (fused, reference))
    # torch's own kernels round at least as often.
    assert float(ours / near.norm()) < max(2e-2, float(theirs / near.norm()))
    monkeypatch.setattr(launch, "OVERLAP", True)
    layer.run(fused, hidden)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = hidden
        for _ in range(4):
            found = layer.run(fused, found)
    for _ in range(10):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, wanted)
