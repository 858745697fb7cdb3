"""Both implementations get the same prompts, and measurements compare correctly."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from vip_llava.bench.bench_model import BenchModel, random_model
from vip_llava.bench.quantization_error import decode_logits, logits_error
from vip_llava.bench.roofline import decode_bytes, measure_roofline, peak_bytes, prefill_flops
from vip_llava.bench.workloads import DEFAULT_WORKLOADS, WORKLOADS, Load, Measurement
from vip_llava.models.fp16_linear import replace_linears, supports_fp16_linear
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

SMALL = Load(text_tokens=8, new_tokens=4, concurrency=3, batch=2, runs=2)


@pytest.fixture(scope="module")
def bench_model() -> BenchModel:
    return random_model("tiny")


def test_both_implementations_give_the_same_tokens(bench_model: BenchModel) -> None:
    prompts = [bench_model.prompt(seed, 8) for seed in range(2)]
    theirs = bench_model.generate(prompts, 6).tolist()
    engine = bench_model.engine()
    handles = [engine.submit(*prompt, SamplingParams(max_new_tokens=6)) for prompt in prompts]
    assert [list(handle.result().tokens) for handle in handles] == theirs
    assert len(prompts[0][0]) == 8 + bench_model.tokens_per_view
    assert prompts[0] != bench_model.prompt(1, 8)


@pytest.mark.parametrize("name", DEFAULT_WORKLOADS)
def test_every_default_workload_has_figures_of_both_ways(
    bench_model: BenchModel, name: str
) -> None:
    found = WORKLOADS[name](bench_model, SMALL)
    ways = {one.implementation for one in found}
    assert "engine" in ways
    assert any(implementation.startswith("transformers") for implementation in ways)
    mine = [one for one in found if one.workload == found[0].workload]
    assert len({one.unit for one in mine}) == 1
    assert len({one.implementation for one in mine}) == len(mine)
    assert all(math.isfinite(one.value) and one.value > 0 for one in found)
    worse = [f.p95 <= f.value if f.higher_is_better else f.p95 >= f.value for f in found]
    assert all(worse)


def test_compiled_transformers_is_a_third_way(bench_model: BenchModel) -> None:
    """(On a CPU it has a static cache and is not compiled.)"""
    [one] = WORKLOADS["compiled"](bench_model, SMALL)
    [plain, _] = WORKLOADS["decode"](bench_model, SMALL)
    assert one.implementation == "transformers, static and compiled"
    assert (one.workload, one.unit) == (plain.workload, plain.unit)


def test_quantized_weights_have_small_errors(bench_model: BenchModel) -> None:
    found = {(f.workload, f.implementation): f for f in WORKLOADS["quantized"](bench_model, SMALL)}
    for bits, low, high in ((8, 0.0, 5.0), (4, 2.0, 60.0)):
        implementation = f"engine, {bits}-bit weights"
        assert low < found["error of logits", implementation].value < high
        assert 0 < found["same most probable token", implementation].value <= 100
        speed, read = (
            found["decode, one request", implementation],
            found["weights read in it", implementation],
        )
        # Norms, output matrix and scales are read besides the quantized weights.
        assert (
            1 < read.value * 1e9 / speed.value / (bits / 8 * 2 * (4 * 64 * 64 + 3 * 64 * 128)) < 8
        )


def test_logits_token_by_token_equal_those_of_all_at_once(bench_model: BenchModel) -> None:
    ids = list(range(5, 30))
    with torch.inference_mode():
        wanted = bench_model.model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(decode_logits(bench_model.model, ids), wanted, rtol=1e-4, atol=1e-4)
    hook = bench_model.model.get_decoder().register_forward_hook(lambda *_: None)
    torch.testing.assert_close(decode_logits(bench_model.model, ids), wanted, rtol=1e-4, atol=1e-4)
    hook.remove()
    changed = wanted.clone()
    changed[:5] *= -1
    assert logits_error(wanted, wanted) == (0.0, 1.0)
    assert 0.3 < logits_error(changed, wanted).relative < 2
    assert logits_error(changed, wanted).agreement == pytest.approx(0.8)


def test_more_tokens_and_less_time_are_better() -> None:
    fast, slow = (Measurement("w", "x", "tokens/s", value, value, True) for value in (30.0, 10.0))
    assert fast.better_than(slow) == 3
    short, long = (Measurement("w", "x", "ms", value, value, False) for value in (10.0, 40.0))
    assert short.better_than(long) == 4


def test_the_roofline_is_measured() -> None:
    found = measure_roofline(torch.device("cpu"), torch.float32)
    assert found.copy_gigabytes > 0.01
    assert found.matmul_teraflops > 1e-4
    assert peak_bytes(torch.device("cpu")) > 10**7


def test_work_is_counted_by_weights(bench_model: BenchModel) -> None:
    model = copy.deepcopy(bench_model.model)
    layers, head = 2 * (4 * 64 * 64 + 3 * 64 * 128), 64 * 512
    norms = 5 * 64 * 4
    other = sum(buffer.numel() * 4 for buffer in model.get_decoder().rotary_emb.buffers())
    assert decode_bytes(model) == 4 * (layers + head) + norms + other
    tower = 12 * (4 * 64 * 64 + 2 * 64 * 128)
    projector = 5 * 64 * 64 + 64 * 64
    expected = 2 * (16 * (tower + projector) + 80 * layers + head)
    assert prefill_flops(model, 80, 16) == expected
    if supports_fp16_linear(torch.device("cpu")):
        half = copy.deepcopy(model)
        replace_linears(half)
        assert decode_bytes(half) == 2 * (layers + head) + norms + other
        assert prefill_flops(half, 80, 16) == expected
    quantize_model(model, Quantization(8))
    scales = 2 * (5 * 64 + 2 * 128)
    assert decode_bytes(model) == layers + 4 * (head + scales) + norms + other
    assert prefill_flops(model, 80, 16) == expected


def test_the_cost_of_graphs_is_measured(
    bench_model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BenchModel.engine
    monkeypatch.setattr(
        BenchModel, "engine", lambda self, **config: engine(self, cuda_graphs=True, **config)
    )
    found = WORKLOADS["concurrent"](bench_model, SMALL)
    # 1, 2 and 4 sequences; 1 and 2 views; 16, 32, 64, 128 and 192 tokens of prompts.
    assert [one.workload for one in found if one.unit == "s"] == ["10 graphs captured"]
    name = "3 requests at once"
    assert {name, f"{name}, first token", f"{name}, whole answer"} <= {
        one.workload for one in found
    }
