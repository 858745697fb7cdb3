"""Triton's attention and elementwise operations against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import DecodeBatch, PrefillChunk, reference

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HEADS = [(4, 4, 16), (6, 2, 24), (2, 2, 128), (8, 1, 64)]
LENGTHS = [1, 37, 0, 16, 150]
W = 10


def rotary_of(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    powers = torch.arange(width // 2, device=positions.device) * 2 / width
    angles = positions[:, None] / 100**powers
    both = torch.cat((angles, angles), dim=1)
    return both.cos(), both.sin()


class Memory:
    """Sequences of different lengths in scattered blocks; every other slot is NaN."""

    def __init__(self, make: Any, kv_heads: int, width: int, dtype: torch.dtype) -> None:
        device = make.device
        self.lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
        count = len(LENGTHS) * W
        order = torch.randperm(count, generator=make.generator).to(device, torch.int32)
        self.table = order.view(len(LENGTHS), W)
        nothing = torch.full(
            (2, count * 16, kv_heads, width), float("nan"), dtype=dtype, device=device
        )
        self.keys, self.values = nothing
        for row, length in enumerate(LENGTHS):
            at = torch.arange(length, device=device)
            slots = self.table[row, at // 16] * 16 + at % 16
            self.keys[slots] = make.randn(length, kv_heads, width, dtype=dtype)
            self.values[slots] = make.randn(length, kv_heads, width, dtype=dtype)
        self.positions = (self.lengths - 1).clamp(min=0)
        last = self.table.gather(1, (self.positions // 16).long().unsqueeze(1)).squeeze(1)
        slots = torch.where(self.lengths > 0, last * 16 + self.positions % 16, -1)
        self.batch = DecodeBatch(slots, self.table, self.lengths)


def states(make: Any, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as views of one result."""
    sizes = [heads * width, kv_heads * width, kv_heads * width]
    whole = make.randn(len(LENGTHS), sum(sizes), dtype=dtype)
    return [part.view(len(LENGTHS), -1, width) for part in whole.split(sizes, dim=1)]


def decoded(kernels: Any, memory: Memory, qkv: Any, rotary: Any) -> tuple[Tensor, ...]:
    """The result of a decode step, and the cache after it."""
    cache = memory.keys.clone(), memory.values.clone()
    return kernels.decode_attention(qkv, rotary, cache, memory.batch, 0.3), *cache


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(("heads", "kv_heads", "width"), HEADS)
def test_decode_stores_and_attends(
    fused: Any, make: Any, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    memory = Memory(make, kv_heads, width, dtype)
    qkv = states(make, heads, kv_heads, width, dtype)
    rotary = tuple(part.to(dtype) for part in rotary_of(memory.positions, width))
    ours, theirs = (decoded(kernels, memory, qkv, rotary) for kernels in (fused, reference))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=CLOSE[dtype], atol=CLOSE[dtype], equal_nan=True)
    assert bool(ours[0].isfinite().all())


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_splits_make_no_difference(
    fused: Any, make: Any, monkeypatch: pytest.MonkeyPatch, splits: int
) -> None:
    from vip_llava.kernels.fused import tuned_configs

    for tile, (heads, kv_heads, width) in ((16, HEADS[0]), (32, HEADS[1])):
        config = tuned_configs.AttentionConfig(tile, 4, 2, splits)
        monkeypatch.setattr(tuned_configs, "attention_config", lambda *_, config=config: config)
        memory = Memory(make, kv_heads, width, torch.float32)
        qkv = states(make, heads, kv_heads, width, torch.float32)
        rotary = rotary_of(memory.positions, width)
        found, wanted = (decoded(kernels, memory, qkv, rotary)[0] for kernels in (fused, reference))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", list(CLOSE))
def test_elementwise_operations(fused: Any, make: Any, dtype: torch.dtype) -> None:
    close = {"rtol": CLOSE[dtype], "atol": CLOSE[dtype]}
    x, residual = make.randn(3, 200, dtype=dtype)[:, :100], make.randn(3, 100, dtype=dtype)
    weight = make.randn(100, dtype=dtype)
    torch.testing.assert_close(
        fused.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **close
    )
    found, wanted = (one.add_rms_norm(x, residual, weight, 1e-5) for one in (fused, reference))
    torch.testing.assert_close(found[0], wanted[0], **close)
    torch.testing.assert_close(found[1], wanted[1], **close)
    torch.testing.assert_close(fused.silu_and_mul(x), reference.silu_and_mul(x), **close)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), HEADS[:2])
def test_rope_and_cache(fused: Any, make: Any, heads: int, kv_heads: int, width: int) -> None:
    qkv = states(make, heads, kv_heads, width, torch.float32)
    slots = torch.tensor([0, 7, -1, 3, 9], device=make.device)
    rotary = rotary_of(torch.tensor([4, 0, 1, 90, 7], device=make.device), width)
    found = []
    for kernels in (fused, reference):
        keys, values = torch.zeros(2, 10, kv_heads, width, device=make.device)
        rotated = kernels.rope_and_cache(qkv, rotary, (keys, values), slots)
        found.append((rotated, keys, values))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(("heads", "kv_heads", "width"), HEADS)
def test_prefill(
    fused: Any, make: Any, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    """Whole sequences and the rest of sequences, in scattered blocks, with padding."""
    memory = Memory(make, kv_heads, width, dtype)
    cache = memory.keys, memory.values
    for row, start, count in ((4, 0, 150), (4, 50, 90), (4, 149, 40), (1, 0, 70), (1, 20, 17)):
        span = torch.tensor([start, LENGTHS[row]], dtype=torch.int32, device=make.device)
        query = make.randn(count, heads + 1, width, dtype=dtype)[:, 1:]
        chunk = PrefillChunk(memory.batch.slot_mapping, memory.table[row], span)
        found = fused.prefill_attention(query, cache, chunk, 0.3)
        new = min(count, LENGTHS[row] - start)
        assert bool(found.isfinite().all())
        wanted = reference.prefill_attention(query, cache, chunk, 0.3)[:new]
        torch.testing.assert_close(found[:new], wanted, rtol=CLOSE[dtype], atol=CLOSE[dtype])
        # Token by token it equals decode attention.
        lengths = torch.arange(start + 1, start + new + 1, dtype=torch.int32, device=make.device)
        batch = DecodeBatch(lengths, memory.table[row].expand(new, -1), lengths)
        alone = reference.paged_attention(query[:new], cache, batch, 0.3)
        torch.testing.assert_close(wanted, alone, rtol=CLOSE[dtype], atol=CLOSE[dtype])
