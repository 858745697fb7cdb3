"""Paged attention of a mixed step equals plain attention of each request by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.engine.attention import PAGED_ATTENTION, Piece, paged, paged_attention, plan
from vip_llava.engine.block_manager import KVMemory, StepCache

HEADS, HELD, WIDTH, PLACES = 4, 2, 8, 256


def plain(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """The definition, written out: query [Q, C, D] are the last of keys [H, L, D]."""
    keys, values = (t.repeat_interleave(HEADS // HELD, dim=0) for t in (keys, values))
    scores = query @ keys.transpose(1, 2) * 0.3
    length, count = keys.shape[1], query.shape[1]
    distance = torch.arange(length - count, length)[:, None] - torch.arange(length)[None]
    hidden = (distance < 0) | (distance >= (window or length))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 7)],
        [(9, 1)],
        [(3, 6)],
        [(0, 1), (1, 1)],
        [(20, 1), (17, 1), (9, 1), (2, 1), (0, 5), (12, 4), (30, 1), (0, 9)],
    ],
)
@pytest.mark.parametrize("in_order", [True, False])
def test_every_piece_is_attended_to_as_if_alone(
    pieces: list[tuple[int, int]], window: int | None, in_order: bool
) -> None:
    generator = torch.Generator().manual_seed(len(pieces))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    order = torch.arange(PLACES) if in_order else torch.randperm(PLACES, generator=generator)
    memory = KVMemory(blocks=PLACES // 16)
    memory.reach(PLACES)
    # What other requests left behind must not matter, not even what is no number.
    junk = torch.full((PLACES, HELD, WIDTH), torch.nan)
    memory.write(0, torch.arange(PLACES), junk, junk)
    made, texts, taken = [], [], 0
    for start, count in pieces:
        places = order[taken : taken + start + count]
        taken += start + count
        first = int(places[0]) if in_order else None
        keys, values = draw(HELD, start + count, WIDTH), draw(HELD, start + count, WIDTH)
        before = (states[:, :start].transpose(0, 1) for states in (keys, values))
        memory.write(0, places[:start], *before)
        made.append(Piece(start, count, places, first))
        texts.append((keys, values, draw(HEADS, count, WIDTH)))
    step = plan(memory, made, torch.device("cpu"))
    key, value = (
        torch.cat([text[i][:, -piece.count :] for text, piece in zip(texts, made, strict=True)], 1)
        for i in (0, 1)
    )
    query = torch.cat([text[2] for text in texts], dim=1)
    StepCache(memory, step.places).update(key[None], value[None], 0)
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
    expected = torch.cat([plain(q, k, v, window) for k, v, q in texts])
    assert weights is None
    torch.testing.assert_close(out[0], expected, atol=1e-5, rtol=0)
    positions = [torch.arange(start, start + count) for start, count in pieces]
    assert torch.equal(step.positions[0], torch.cat(positions))


def test_the_model_attends_as_before_afterwards(vip_model: Any) -> None:
    decoder = vip_model.get_decoder()
    before = decoder.config._attn_implementation
    vision = vip_model.config.vision_config._attn_implementation
    with pytest.raises(ZeroDivisionError), paged(decoder):
        assert decoder.config._attn_implementation == PAGED_ATTENTION != before
        assert vip_model.config.vision_config._attn_implementation == vision
        raise ZeroDivisionError
    assert decoder.config._attn_implementation == before
