"""A layer made of the fused kernels as a CUDA graph: the same numbers, however kernels overlap."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import Dense, Int4, Int8, Norm
from vip_llava.kernels import reference as plain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

WIDTH, INNER, HEADS, LENGTH = 1024, 2816, 8, 200
BF16 = torch.bfloat16
# Attention to many places at once: to a single one, a rounded query is a coin thrown for both ways.
SCALE = 0.01


class Layer:
    """A layer, and requests in the middle of their answers."""

    def __init__(self, make: Any, bits: int, rows: int) -> None:
        self.norm = Norm(make.randn(WIDTH, dtype=BF16), 1e-5)
        square = [make.matrix(bits, WIDTH, WIDTH, BF16) for _ in range(4)]
        self.qkv, self.out = square[:3], square[3]
        self.gate, self.up = (make.matrix(bits, INNER, WIDTH, BF16) for _ in range(2))
        self.down = make.matrix(bits, WIDTH, INNER, BF16)
        blocks = LENGTH // 16 + 1
        order = torch.randperm(rows * blocks, generator=make.generator)
        self.table = order.view(rows, blocks).to("cuda", torch.int32)
        self.lengths = torch.arange(LENGTH, LENGTH - rows, -1, device="cuda", dtype=torch.int32)
        at = (self.lengths - 1).long()
        self.places = self.table.gather(1, (at // 16).unsqueeze(1)).squeeze(1) * 16 + at % 16
        head = WIDTH // HEADS
        shape = (rows * blocks * 16, HEADS, head)
        self.memory = make.randn(*shape, dtype=BF16), make.randn(*shape, dtype=BF16)
        self.turns = make.randn(rows, head, dtype=BF16), make.randn(rows, head, dtype=BF16)

    def run(self, kernels: Any, hidden: Tensor) -> Tensor:
        qkv = kernels.rows(hidden, self.qkv, norm=self.norm)
        q, k, v = (part.view(len(hidden), HEADS, -1) for part in qkv.chunk(3, dim=1))
        found = kernels.paged_step(
            q, k, v, *self.turns, *self.memory, self.places, self.table, self.lengths, SCALE
        )
        after = kernels.rows(found.flatten(1), [self.out], hidden)
        inner = kernels.gated_rows(after, self.gate, self.up, self.norm)
        result: Tensor = kernels.rows(inner, [self.down], after)
        return result


def in_float32(thing: Any) -> Any:
    """The same numbers in float32; small weights as what they stand for."""
    if isinstance(thing, Int8):
        return Dense(plain.dequantized(replace(thing, scale=thing.scale.float())))
    if isinstance(thing, Int4):
        wide = replace(thing, scale=thing.scale.float(), low=thing.low.float())
        return Dense(plain.dequantized(wide))
    if isinstance(thing, Dense | Norm):
        return replace(thing, weight=thing.weight.float())
    if isinstance(thing, list | tuple):
        return type(thing)(in_float32(one) for one in thing)
    return thing.float() if isinstance(thing, Tensor) and thing.dtype == BF16 else thing


def exactly(layer: Layer) -> Layer:
    """One that computes in float32: what bfloat16 makes of widened weights is coarser."""
    wide = copy.copy(layer)
    vars(wide).update({name: in_float32(thing) for name, thing in vars(layer).items()})
    return wide


@pytest.mark.parametrize("rows", [1, 5, 64, 100])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_recorded_layer(
    fused: Any, make: Any, monkeypatch: pytest.MonkeyPatch, bits: int, rows: int
) -> None:
    from vip_llava.kernels.fused import context as setting

    layer = Layer(make, bits, rows)
    hidden = make.randn(rows, WIDTH, dtype=BF16)
    # Four times the same layer: many kernels after each other that need each other's results.
    monkeypatch.setattr(setting, "OVERLAP", False)
    wanted = hidden
    for _ in range(4):
        wanted = layer.run(fused, wanted)
    near = exactly(layer).run(plain, hidden.float())
    ours, theirs = ((layer.run(kernels, hidden) - near).norm() for kernels in (fused, plain))
    # torch's own kernels round too, in as many places or more.
    assert float(ours / near.norm()) < max(2e-2, float(theirs / near.norm()))
    monkeypatch.setattr(setting, "OVERLAP", True)
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
