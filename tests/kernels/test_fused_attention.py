"""Triton's attention and small operations against the plain ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import reference as plain

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HEADS = [(4, 4, 16), (6, 2, 24), (2, 2, 128), (8, 1, 64)]
LENGTHS = [1, 37, 0, 16, 150]
W = 10


def rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    powers = torch.arange(width // 2, device=positions.device) * 2 / width
    angles = positions[:, None] / 100**powers
    both = torch.cat((angles, angles), dim=1)
    return both.cos(), both.sin()


class Memory:
    """Requests of different lengths in scattered blocks; every other place is not a number."""

    def __init__(self, make: Any, held: int, width: int, dtype: torch.dtype) -> None:
        device = make.device
        self.lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
        count = len(LENGTHS) * W
        order = torch.randperm(count, generator=make.generator).to(device, torch.int32)
        self.table = order.view(len(LENGTHS), W)
        nothing = torch.full((2, count * 16, held, width), float("nan"), dtype=dtype, device=device)
        self.keys, self.values = nothing
        for row, length in enumerate(LENGTHS):
            at = torch.arange(length, device=device)
            places = self.table[row, at // 16] * 16 + at % 16
            self.keys[places] = make.randn(length, held, width, dtype=dtype)
            self.values[places] = make.randn(length, held, width, dtype=dtype)
        self.positions = (self.lengths - 1).clamp(min=0)
        last = self.table.gather(1, (self.positions // 16).long().unsqueeze(1)).squeeze(1)
        self.places = torch.where(self.lengths > 0, last * 16 + self.positions % 16, -1)


def states(make: Any, heads: int, held: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as views of one result."""
    sizes = [heads * width, held * width, held * width]
    whole = make.randn(len(LENGTHS), sum(sizes), dtype=dtype)
    return [part.view(len(LENGTHS), -1, width) for part in whole.split(sizes, dim=1)]


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(("heads", "held", "width"), HEADS)
def test_attention(
    fused: Any, make: Any, heads: int, held: int, width: int, dtype: torch.dtype
) -> None:
    memory = Memory(make, held, width, dtype)
    query, _, _ = states(make, heads, held, width, dtype)
    for window in (None, 5, 40):
        arguments = (memory.keys, memory.values, memory.table, memory.lengths, 0.3, window)
        found = fused.paged_decode(query, *arguments)
        wanted = plain.paged_decode(query, *arguments)
        torch.testing.assert_close(found, wanted, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(("heads", "held", "width"), HEADS)
def test_a_step_stores_and_attends(
    fused: Any, make: Any, heads: int, held: int, width: int, dtype: torch.dtype
) -> None:
    memory = Memory(make, held, width, dtype)
    q, k, v = states(make, heads, held, width, dtype)
    cos, sin = (part.to(dtype) for part in rotary(memory.positions, width))
    found = []
    for kernels, window in itertools.product((fused, plain), (None, 5)):
        keys, values = memory.keys.clone(), memory.values.clone()
        result = kernels.paged_step(
            q,
            k,
            v,
            cos,
            sin,
            keys,
            values,
            memory.places,
            memory.table,
            memory.lengths,
            0.3,
            window,
        )
        found.append((result, keys, values))
    for ours, wanted in zip(found[:2], found[2:], strict=True):
        for one, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(
                one, other, rtol=CLOSE[dtype], atol=CLOSE[dtype], equal_nan=True
            )
        assert bool(ours[0].isfinite().all())


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_make_no_difference(
    fused: Any, make: Any, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    from vip_llava.kernels.fused import tuned_configs as choices

    for tile, (heads, held, width) in ((16, HEADS[0]), (32, HEADS[1])):
        setting = choices.AttentionSetting(tile, 4, 2, parts)
        monkeypatch.setattr(choices, "attention_setting", lambda *_, setting=setting: setting)
        memory = Memory(make, held, width, torch.float32)
        query, _, _ = states(make, heads, held, width, torch.float32)
        arguments = (memory.keys, memory.values, memory.table, memory.lengths, 0.3)
        torch.testing.assert_close(
            fused.paged_decode(query, *arguments), plain.paged_decode(query, *arguments)
        )


@pytest.mark.parametrize("dtype", list(CLOSE))
def test_small_operations(fused: Any, make: Any, dtype: torch.dtype) -> None:
    close = {"rtol": CLOSE[dtype], "atol": CLOSE[dtype]}
    x, residual = make.randn(3, 200, dtype=dtype)[:, :100], make.randn(3, 100, dtype=dtype)
    weight = make.randn(100, dtype=dtype)
    torch.testing.assert_close(
        fused.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5), **close
    )
    found, wanted = (one.add_rms_norm(x, residual, weight, 1e-5) for one in (fused, plain))
    torch.testing.assert_close(found[0], wanted[0], **close)
    torch.testing.assert_close(found[1], wanted[1], **close)
    torch.testing.assert_close(fused.silu_and_mul(x), plain.silu_and_mul(x), **close)


@pytest.mark.parametrize(("heads", "held", "width"), HEADS[:2])
def test_rotation(fused: Any, make: Any, heads: int, held: int, width: int) -> None:
    q, k, v = states(make, heads, held, width, torch.float32)
    places = torch.tensor([0, 7, -1, 3, 9], device=make.device)
    cos, sin = rotary(torch.tensor([4, 0, 1, 90, 7], device=make.device), width)
    found = []
    for kernels in (fused, plain):
        keys, values = torch.zeros(2, 10, held, width, device=make.device)
        turned = kernels.rotate_and_store(q, k, v, cos, sin, keys, values, places)
        found.append((turned, keys, values))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(("heads", "held", "width"), HEADS)
def test_new_tokens_of_a_text(
    fused: Any, make: Any, heads: int, held: int, width: int, dtype: torch.dtype
) -> None:
    """Whole texts and the rest of texts, in scattered blocks, filled up with what sees nothing new."""
    memory = Memory(make, held, width, dtype)
    for row, start, count, window in (
        (4, 0, 150, None), (4, 50, 90, None), (4, 149, 40, 30), (1, 0, 70, 5), (1, 20, 17, None),
    ):  # fmt: skip
        span = torch.tensor([start, LENGTHS[row]], dtype=torch.int32, device=make.device)
        query = make.randn(count, heads + 1, width, dtype=dtype)[:, 1:]
        arguments = (memory.keys, memory.values, memory.table[row], span, 0.3, window)
        found = fused.paged_prompt(query, *arguments)
        new = min(count, LENGTHS[row] - start)
        assert bool(found.isfinite().all())
        wanted = plain.paged_prompt(query, *arguments)[:new]
        torch.testing.assert_close(found[:new], wanted, rtol=CLOSE[dtype], atol=CLOSE[dtype])
        # Token by token it is what a step of answers finds.
        lengths = torch.arange(start + 1, start + new + 1, dtype=torch.int32, device=make.device)
        table = memory.table[row].expand(new, -1)
        alone = plain.paged_decode(query[:new], *arguments[:2], table, lengths, 0.3, window)
        torch.testing.assert_close(wanted, alone, rtol=CLOSE[dtype], atol=CLOSE[dtype])
