"""The batch sampler gives the original's order of rows for the same torch seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vip_llava.data.batch_sampler import GroupedBatchSampler, grouped_by_length, grouped_by_modality

from .conftest import recorded_cases, skip_without

pytestmark = pytest.mark.conformance


def test_order(family: Callable[[str], Path]) -> None:
    compared = 0
    for case in recorded_cases(family("sampler") / "cases.jsonl"):
        lengths, batch, world = case["lengths"], case["batch_size"], case["world_size"]
        for generator in (torch.Generator(), None):
            if generator is None:
                torch.manual_seed(case["torch_seed"])
            else:
                generator.manual_seed(case["torch_seed"])
            found = grouped_by_modality(lengths, batch, world, generator)
            assert found == case["by_modality"], case["id"]
        generator = torch.Generator().manual_seed(case["torch_seed"])
        sizes = [abs(length) for length in lengths]
        assert grouped_by_length(sizes, batch, world, generator) == case["by_length"], case["id"]
        compared += 1
    skip_without(compared, "order of rows")


def test_batches_of_a_step_are_those_of_the_order(family: Callable[[str], Path]) -> None:
    """The concatenated batches of epoch 0 and seed 0 are the order itself."""
    for case in recorded_cases(family("sampler") / "cases.jsonl"):
        lengths, batch, world = case["lengths"], case["batch_size"], case["world_size"]
        batches = GroupedBatchSampler(lengths, batch, batches_per_step=world, seed=0).batches(0)
        order = grouped_by_modality(lengths, batch, world, torch.Generator().manual_seed(0))
        assert [row for rows in batches for row in rows] == order
