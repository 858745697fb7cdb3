from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.data.packing import PackedBatchSampler, pack


@given(
    lengths=st.lists(st.integers(-300, 300).filter(bool), max_size=80),
    room=st.integers(1, 400),
    window=st.integers(1, 100),
    seed=st.integers(0, 9),
)
def test_every_row_once_and_no_pack_too_long(
    lengths: list[int], room: int, window: int, seed: int
) -> None:
    packs = pack(lengths, room, seed=seed, window=window)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    assert packs == pack(lengths, room, seed=seed, window=window)
    for rows in packs:
        assert len(rows) == 1 or sum(abs(lengths[row]) for row in rows) <= room


def ragged(count: int, seed: int = 0) -> list[int]:
    """As a mix of rows with an image (576 and some) and of text alone."""
    generator = torch.Generator().manual_seed(seed)
    imaged = torch.randint(620, 1100, (count // 2,), generator=generator).tolist()
    texts = torch.randint(30, 900, (count - count // 2,), generator=generator).tolist()
    return [*imaged, *(-length for length in texts)]


def test_packs_are_nearly_full() -> None:
    batches = PackedBatchSampler(ragged(4000), 4096, seed=1)
    assert 0.97 < batches.fill_ratio <= 1
    assert PackedBatchSampler([], 10).fill_ratio == 1


def test_a_row_that_is_too_long_has_its_own_pack() -> None:
    packs = pack([50, 500, 40, 10], 100, seed=0)
    assert [1] in packs
    assert len(packs) == 2


def test_epochs_have_as_many_packs_in_another_order() -> None:
    batches = PackedBatchSampler(ragged(300), 4096, seed=3)
    first, second = batches.batches(0), batches.batches(1)
    assert first != second
    assert sorted(map(tuple, first)) == sorted(map(tuple, second))
    assert first == PackedBatchSampler(ragged(300), 4096, seed=3).batches(0)
    assert batches.batches(0) == first


def test_the_identity_determines_the_packs() -> None:
    usual = PackedBatchSampler([5, 7], 20, seed=1)
    assert usual.identity == PackedBatchSampler([5, 7], 20, seed=1).identity
    others = [
        PackedBatchSampler([7, 5], 20, seed=1), PackedBatchSampler([5, 7], 21, seed=1), PackedBatchSampler([5, 7], 20)
    ]  # fmt: skip
    assert len({usual.identity, *(other.identity for other in others)}) == 4


def test_seeds_differ() -> None:
    lengths = ragged(200)
    assert pack(lengths, 4096, seed=0) != pack(lengths, 4096, seed=1)


def test_packing_a_hundred_thousand_rows_is_fast() -> None:
    lengths = ragged(100_000)
    started = time.perf_counter()
    pack(lengths, 8192, seed=0)
    assert time.perf_counter() - started < 10


def test_max_tokens_must_be_positive() -> None:
    with pytest.raises(ValueError, match="not 0"):
        pack([1], 0, seed=0)
