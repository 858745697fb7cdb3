"""The reference kernels against transformers' modules and written-out definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from vip_llava.kernels import DecodeBatch, Dense, Norm, for_device, reference


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    angles = positions[:, None] / 100 ** (torch.arange(width // 2) * 2 / width)
    return torch.cat((angles, angles), dim=1).cos(), torch.cat((angles, angles), dim=1).sin()


def test_a_cpu_gets_the_reference() -> None:
    assert for_device(torch.device("cpu")) is reference
    assert not for_device(torch.device("cpu")).CAPTURABLE


def test_norm_is_that_of_transformers(generator: torch.Generator) -> None:
    x, residual = torch.randn(2, 3, 32, generator=generator)
    norm = LlamaRMSNorm(32, eps=1e-5)
    torch.nn.init.normal_(norm.weight, generator=generator)
    normed, total = reference.add_rms_norm(x, residual, norm.weight, 1e-5)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed, norm(total))


def test_products_stand_side_by_side(generator: torch.Generator) -> None:
    x, residual = torch.randn(3, 32, generator=generator), torch.randn(3, 24, generator=generator)
    first, second = (
        torch.randn(16, 32, generator=generator),
        torch.randn(8, 32, generator=generator),
    )
    bias = torch.randn(8, generator=generator)
    norm = Norm(torch.randn(32, generator=generator), 1e-5)
    found = reference.linear(x, [Dense(first), Dense(second, bias)], residual, norm)
    normed = F.rms_norm(x, (32,), norm.weight, norm.eps)
    wanted = torch.cat((normed @ first.T, normed @ second.T + bias), dim=1) + residual
    torch.testing.assert_close(found, wanted)


def test_gate_and_up(generator: torch.Generator) -> None:
    x = torch.randn(3, 32, generator=generator)
    gate, up = torch.randn(2, 16, 32, generator=generator)
    found = reference.swiglu(x, Dense(gate), Dense(up))
    torch.testing.assert_close(found, F.silu(x @ gate.T) * (x @ up.T))
    torch.testing.assert_close(reference.silu_and_mul(x @ torch.cat((gate, up)).T), found)


def test_rope_and_cache(generator: torch.Generator) -> None:
    fused = torch.randn(3, (4 + 2 + 2) * 8, generator=generator)
    q, k, v = (part.view(3, -1, 8) for part in fused.split([32, 16, 16], dim=1))
    cos, sin = rotary(torch.tensor([5, 0, 9]), 8)
    keys, values = torch.randn(2, 40, 2, 8, generator=generator)
    before, slots = keys.clone(), torch.tensor([33, -1, 2])
    rotated = reference.rope_and_cache((q, k, v), (cos, sin), (keys, values), slots)
    wanted_q, wanted_k = apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close(rotated, wanted_q)
    torch.testing.assert_close(keys[[33, 2]], wanted_k[[0, 2]])
    torch.testing.assert_close(values[[33, 2]], v[[0, 2]])
    others = [slot for slot in range(40) if slot not in (2, 33)]
    assert torch.equal(keys[others], before[others])


def test_attention_over_own_slots_only(generator: torch.Generator) -> None:
    lengths = torch.tensor([1, 37, 0, 16], dtype=torch.int32)
    table = torch.tensor([[5, 0, 0], [3, 7, 1], [0, 0, 0], [6, 2, 2]], dtype=torch.int32)
    query = torch.randn(4, 6, 8, generator=generator)
    keys, values = torch.full((2, 8 * 16, 2, 8), float("nan"))
    for row, length in enumerate(lengths.tolist()):
        for at in range(length):
            slot = int(table[row, at // 16]) * 16 + at % 16
            keys[slot] = torch.randn(2, 8, generator=generator)
            values[slot] = torch.randn(2, 8, generator=generator)
    batch = DecodeBatch(torch.empty(0), table, lengths)
    found = reference.paged_attention(query, (keys, values), batch, 0.3)
    assert torch.equal(found[2], torch.zeros(6, 8))
    for row, length in enumerate(lengths.tolist()):
        if not length:
            continue
        slots = [int(table[row, at // 16]) * 16 + at % 16 for at in range(length)]
        for head in range(6):
            scores = keys[slots, head // 3] @ query[row, head] * 0.3
            wanted = scores.softmax(0) @ values[slots, head // 3]
            torch.testing.assert_close(found[row, head], wanted)
