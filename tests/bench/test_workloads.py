"""Both ways are asked the same, and the figures compare as they should."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from vip_llava.bench.bench_model import Subject, random_subject
from vip_llava.bench.quantization_error import distance, step_logits
from vip_llava.bench.roofline import ceilings, first_token_work, peak_bytes, step_bytes
from vip_llava.bench.workloads import USUAL, Figure, Load, measure
from vip_llava.models.fp16_linear import supports_fp16_linear, replace_linears
from vip_llava.models.quantize import Quantization, quantize_model

SMALL = Load(text_tokens=8, new_tokens=4, askers=3, batch=2, runs=2)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return random_subject("tiny")


def test_both_ways_say_the_same(subject: Subject) -> None:
    prompts = [subject.prompt(seed, 8) for seed in range(2)]
    theirs = subject.generate(prompts, 6).tolist()
    engine = subject.engine()
    from vip_llava.sampling_params import SamplingParams

    handles = [engine.submit(*prompt, SamplingParams(max_new_tokens=6)) for prompt in prompts]
    assert [list(handle.result().tokens) for handle in handles] == theirs
    assert len(prompts[0][0]) == 8 + subject.tokens_per_view
    assert prompts[0] != subject.prompt(1, 8)


@pytest.mark.parametrize("name", USUAL)
def test_every_usual_workload_has_figures_of_both_ways(subject: Subject, name: str) -> None:
    figures = measure(subject, SMALL, name)
    ways = {figure.way for figure in figures}
    assert "engine" in ways
    assert any(way.startswith("transformers") for way in ways)
    mine = [figure for figure in figures if figure.workload == figures[0].workload]
    assert len({figure.unit for figure in mine}) == 1
    assert len({figure.way for figure in mine}) == len(mine)
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in figures)
    worse = [f.p95 <= f.value if f.higher_is_better else f.p95 >= f.value for f in figures]
    assert all(worse)


def test_compiled_transformers_is_a_third_way(subject: Subject) -> None:
    """(Where it isn't CUDA it has the cache of fixed size and is not compiled.)"""
    [figure] = measure(subject, SMALL, "compiled")
    [plain, _] = measure(subject, SMALL, "decode")
    assert figure.way == "transformers, static and compiled"
    assert (figure.workload, figure.unit) == (plain.workload, plain.unit)


def test_small_weights_are_faster_or_not_but_near(subject: Subject) -> None:
    figures = {(f.workload, f.way): f for f in measure(subject, SMALL, "small")}
    for bits, low, high in ((8, 0.0, 5.0), (4, 2.0, 60.0)):
        way = f"engine, {bits}-bit weights"
        assert low < figures["error of logits", way].value < high
        assert 0 < figures["same most probable token", way].value <= 100
        speed, read = figures["decode, one asker", way], figures["weights read in it", way]
        # Norms, output matrix and scales are read besides the small weights.
        assert (
            1 < read.value * 1e9 / speed.value / (bits / 8 * 2 * (4 * 64 * 64 + 3 * 64 * 128)) < 8
        )


def test_logits_token_by_token_are_those_of_all_at_once(subject: Subject) -> None:
    ids = list(range(5, 30))
    with torch.inference_mode():
        wanted = subject.model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(step_logits(subject.model, ids), wanted, rtol=1e-4, atol=1e-4)
    hook = subject.model.get_decoder().register_forward_hook(lambda *_: None)
    torch.testing.assert_close(step_logits(subject.model, ids), wanted, rtol=1e-4, atol=1e-4)
    hook.remove()
    changed = wanted.clone()
    changed[:5] *= -1
    assert distance(wanted, wanted) == (0.0, 1.0)
    assert 0.3 < distance(changed, wanted).error < 2
    assert distance(changed, wanted).agreement == pytest.approx(0.8)


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


def test_work_is_counted_in_weights(subject: Subject) -> None:
    model = copy.deepcopy(subject.model)
    layers, head = 2 * (4 * 64 * 64 + 3 * 64 * 128), 64 * 512
    norms = 5 * 64 * 4
    other = sum(buffer.numel() * 4 for buffer in model.get_decoder().rotary_emb.buffers())
    assert step_bytes(model) == 4 * (layers + head) + norms + other
    tower = 12 * (4 * 64 * 64 + 2 * 64 * 128)
    projector = 5 * 64 * 64 + 64 * 64
    expected = 2 * (16 * (tower + projector) + 80 * layers + head)
    assert first_token_work(model, 80, 16) == expected
    if supports_fp16_linear(torch.device("cpu")):
        half = copy.deepcopy(model)
        replace_linears(half)
        assert step_bytes(half) == 2 * (layers + head) + norms + other
        assert first_token_work(half, 80, 16) == expected
    quantize_model(model, Quantization(8))
    scales = 2 * (5 * 64 + 2 * 128)
    assert step_bytes(model) == layers + 4 * (head + scales) + norms + other
    assert first_token_work(model, 80, 16) == expected


def test_a_recording_engine_tells_what_that_cost(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vip_llava.engine.steps.records", lambda *_: True)
    figures = measure(subject, SMALL, "many")
    # 1, 2 and 4 requests; 1 and 2 views; 16, 32, 64, 128 and 192 tokens of prompts.
    assert [f.workload for f in figures if f.unit == "s"] == ["10 recordings made"]
    names = [f.workload for f in figures]
    assert {"3 askers", "3 askers, first token", "3 askers, whole answer"} <= set(names)
