"""Paged attention of a mixed step equals plain attention of each request by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.engine.attention import PAGED_ATTENTION, Chunk, paged, paged_attention, plan_step
from vip_llava.engine.kv_cache import KVCache, StepCache

HEADS, KV_HEADS, WIDTH, SLOTS = 4, 2, 8, 256


def expected_attention(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """The definition, written out: query [Q, C, D] are the last of keys [H, L, D]."""
    keys, values = (t.repeat_interleave(HEADS // KV_HEADS, dim=0) for t in (keys, values))
    scores = query @ keys.transpose(1, 2) * 0.3
    length, count = keys.shape[1], query.shape[1]
    distance = torch.arange(length - count, length)[:, None] - torch.arange(length)[None]
    hidden = (distance < 0) | (distance >= (window or length))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 7)],
        [(9, 1)],
        [(3, 6)],
        [(0, 1), (1, 1)],
        [(20, 1), (17, 1), (9, 1), (2, 1), (0, 5), (12, 4), (30, 1), (0, 9)],
    ],
)
@pytest.mark.parametrize("in_order", [True, False])
def test_each_chunk_attends_as_if_alone(
    chunks: list[tuple[int, int]], window: int | None, in_order: bool
) -> None:
    generator = torch.Generator().manual_seed(len(chunks))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    order = torch.arange(SLOTS) if in_order else torch.randperm(SLOTS, generator=generator)
    cache = KVCache(SLOTS // 16)
    cache.reserve(SLOTS)
    # What other sequences left behind must not matter, not even NaN.
    junk = torch.full((SLOTS, KV_HEADS, WIDTH), torch.nan)
    cache.write(0, torch.arange(SLOTS), junk, junk)
    made, states, taken = [], [], 0
    for start, count in chunks:
        slots = order[taken : taken + start + count]
        taken += start + count
        first = int(slots[0]) if in_order else None
        keys, values = draw(KV_HEADS, start + count, WIDTH), draw(KV_HEADS, start + count, WIDTH)
        before = (states[:, :start].transpose(0, 1) for states in (keys, values))
        cache.write(0, slots[:start], *before)
        made.append(Chunk(start, count, slots, first))
        states.append((keys, values, draw(HEADS, count, WIDTH)))
    step = plan_step(cache, made, torch.device("cpu"))
    key, value = (
        torch.cat([one[i][:, -chunk.count :] for one, chunk in zip(states, made, strict=True)], 1)
        for i in (0, 1)
    )
    query = torch.cat([one[2] for one in states], dim=1)
    StepCache(cache, step.slot_mapping).update(key[None], value[None], 0)
    module: Any = SimpleNamespace(layer_idx=0)
    out, weights = paged_attention(
        module,
        query[None],
        key[None],
        value[None],
        None,
        scaling=0.3,
        sliding_window=window,
        step_plan=step,
    )
    expected = torch.cat([expected_attention(q, k, v, window) for k, v, q in states])
    assert weights is None
    torch.testing.assert_close(out[0], expected, atol=1e-5, rtol=0)
    positions = [torch.arange(start, start + count) for start, count in chunks]
    assert torch.equal(step.positions[0], torch.cat(positions))


def test_the_attention_implementation_is_restored(vip_model: Any) -> None:
    decoder = vip_model.get_decoder()
    before = decoder.config._attn_implementation
    vision = vip_model.config.vision_config._attn_implementation
    with pytest.raises(ZeroDivisionError), paged(decoder):
        assert decoder.config._attn_implementation == PAGED_ATTENTION != before
        assert vip_model.config.vision_config._attn_implementation == vision
        raise ZeroDivisionError
    assert decoder.config._attn_implementation == before
