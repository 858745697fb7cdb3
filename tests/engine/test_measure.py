"""Both ways are asked the same, and the figures compare as they should."""

from __future__ import annotations

import math

import pytest
import torch

from vip_llava.engine.measure import (
    WORKLOADS,
    Figure,
    Load,
    ceilings,
    measure,
    peak_bytes,
)
from vip_llava.engine.subject import Subject, random_subject

SMALL = Load(text_tokens=8, new_tokens=4, askers=3, batch=2, runs=2)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return random_subject("tiny")


def test_both_ways_say_the_same(subject: Subject) -> None:
    prompts = [subject.prompt(seed, 8) for seed in range(2)]
    theirs = subject.generate(prompts, 6).tolist()
    engine = subject.engine()
    from vip_llava.engine import SamplingParams

    handles = [engine.submit(*prompt, SamplingParams(max_new_tokens=6)) for prompt in prompts]
    assert [list(handle.result().tokens) for handle in handles] == theirs
    assert len(prompts[0][0]) == 8 + subject.tokens_per_view
    assert prompts[0] != subject.prompt(1, 8)


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_every_workload_has_figures_of_both_ways(subject: Subject, name: str) -> None:
    [figures] = measure(subject, SMALL, [name])
    ways = {figure.way for figure in figures}
    assert "engine" in ways
    assert any(way.startswith("transformers") for way in ways)
    assert len({(figure.workload, figure.unit) for figure in figures}) == 1
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in figures)
    worse = [f.p95 <= f.value if f.higher_is_better else f.p95 >= f.value for f in figures]
    assert all(worse)


def test_more_tokens_and_less_time_are_better() -> None:
    fast, slow = (Figure("w", "x", "tokens/s", value, value, True) for value in (30.0, 10.0))
    assert fast.better_than(slow) == 3
    short, long = (Figure("w", "x", "ms", value, value, False) for value in (10.0, 40.0))
    assert short.better_than(long) == 4


def test_the_device_is_measured_too() -> None:
    found = ceilings(torch.device("cpu"), torch.float32)
    assert found.copy_gigabytes > 0.01
    assert found.product_teraflops > 1e-4
    assert peak_bytes(torch.device("cpu")) > 10**7
