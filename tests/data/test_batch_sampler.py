from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.data.batch_sampler import GroupedBatchSampler, grouped_by_length, grouped_by_modality

signed = st.lists(st.integers(-400, 400).filter(bool), max_size=70)
sizes = st.integers(1, 5)


@given(lengths=signed, batch=sizes, world=sizes, seed=st.integers(0, 99))
def test_every_row_occurs_once(lengths: list[int], batch: int, world: int, seed: int) -> None:
    batches = GroupedBatchSampler(lengths, batch, batches_per_step=world, seed=seed)
    for by_modality in (True, False):
        batches.by_modality = by_modality
        for epoch in (0, 3):
            found = batches.batches(epoch)
            assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
            assert len(found) == -(-len(lengths) // batch)
            assert all(len(rows) == batch for rows in found[:-1])


@given(lengths=signed, batch=sizes, world=sizes)
def test_full_steps_have_one_modality(lengths: list[int], batch: int, world: int) -> None:
    order = grouped_by_modality(lengths, batch, world, torch.Generator().manual_seed(1))
    step = batch * world
    kinds = [
        [lengths[row] > 0 for row in order[at : at + step]] for at in range(0, len(order), step)
    ]
    mixed = [len(set(kind)) > 1 for kind in kinds]
    # What is left of both kinds is at most two steps, and they come last.
    assert not any(mixed[:-2])


def test_the_ranks_of_a_step_are_balanced() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 2000, (640,), generator=generator).tolist()
    order = grouped_by_length(lengths, 8, 4, generator)
    for start in range(0, len(order), 32):
        shares = [
            sum(lengths[row] for row in order[at : at + 8]) for at in range(start, start + 32, 8)
        ]
        assert max(shares) < 1.1 * min(shares)
        firsts = [lengths[order[at]] for at in range(start, start + 32, 8)]
        assert min(firsts) >= max(lengths[order[at + 4]] for at in range(start, start + 32, 8))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    lengths = list(range(1, 41))

    def order(seed: int, epoch: int) -> list[list[int]]:
        return GroupedBatchSampler(lengths, 4, seed=seed).batches(epoch)

    assert order(0, 1) == order(0, 1)
    assert len({str(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_the_identity_determines_the_batches() -> None:
    """A checkpoint stores the identity, so that a run resumes with the same batches."""
    usual = GroupedBatchSampler([5, -7, 9], 2).identity
    assert usual == GroupedBatchSampler([5, -7, 9], 2).identity
    others = [
        GroupedBatchSampler([5, -7, 8], 2),
        GroupedBatchSampler([-7, 5, 9], 2),
        GroupedBatchSampler([5, -7, 9], 1),
        GroupedBatchSampler([5, -7, 9], 2, batches_per_step=2),
        GroupedBatchSampler([5, -7, 9], 2, seed=1),
        GroupedBatchSampler([5, -7, 9], 2, by_modality=False),
    ]
    assert len({usual, *(other.identity for other in others)}) == 7


def test_the_global_generator_is_not_used() -> None:
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    GroupedBatchSampler([3, -4, 5, 6, -1], 2, batches_per_step=2, seed=1).batches(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_length_of_zero() -> None:
    with pytest.raises(ValueError, match="row 1 has the length 0"):
        grouped_by_modality([3, 0, -2], 1, 1)
    assert GroupedBatchSampler([], 2).batches(0) == []
