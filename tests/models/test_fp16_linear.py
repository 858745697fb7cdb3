"""Linear layers with float16 weights on a CPU: outputs, state dicts and shared matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vip_llava.bench.bench_model import random_model
from vip_llava.models.fp16_linear import (
    Fp16Linear,
    apply_linears,
    replace_linears,
    supports_fp16_linear,
)

pytestmark = pytest.mark.skipif(
    not supports_fp16_linear(torch.device("cpu")),
    reason="this torch has no float16 product for this CPU",
)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    out=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_outputs_equal_those_of_the_rounded_weights(
    rows: int, width: int, out: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(width, out, bias=bias)
    x = torch.randn(2, rows, width)
    found = Fp16Linear(linear)(x)
    assert found.shape == (2, rows, out) and found.dtype == torch.float32
    exact = x.double() @ linear.weight.detach().half().double().T
    if bias:
        exact = exact + linear.bias.detach().double()
    assert (found - exact).abs().max() < 1e-5 * max(1.0, width**0.5)


def test_weights_outside_the_range_of_float16_are_errors() -> None:
    for wrong in (1e5, float("nan"), float("inf")):
        linear = nn.Linear(4, 4)
        with torch.no_grad():
            linear.weight[1, 2] = wrong
        with pytest.raises(ValueError, match="65504"):
            Fp16Linear(linear)


def test_the_state_dict_is_that_of_a_linear_layer() -> None:
    linear = nn.Linear(6, 5)
    half = Fp16Linear(linear)
    fresh = nn.Linear(6, 5)
    fresh.load_state_dict(half.state_dict())
    assert torch.equal(fresh.weight, linear.weight.detach().half().float())
    x = torch.randn(3, 6)
    for again in (copy.deepcopy(half),):
        assert torch.equal(again(x), half(x))
    assert half.packed_parameters == 35


def test_logits_stay_close() -> None:
    torch.manual_seed(0)
    subject = random_model("tiny")
    model: Any = subject.model
    ids, pixels = subject.prompt(3, 12)
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixels}
    count = model.num_parameters()
    with torch.inference_mode():
        before = model(**inputs).logits
        replace_linears(model)
        after = model(**inputs).logits
    assert (before - after).norm() < 2e-3 * before.norm()
    assert not torch.equal(before, after)
    hidden = sum(getattr(part, "packed_parameters", 0) for part in model.modules())
    assert hidden > 0 and model.num_parameters() + hidden == count
    kept = [name for name, part in model.get_decoder().named_modules() if type(part) is nn.Linear]
    assert kept == []


@pytest.mark.parametrize("bias", [False, True])
def test_layers_with_the_same_input_share_a_matrix(bias: bool) -> None:
    torch.manual_seed(0)
    subject = random_model("tiny")
    decoder: Any = subject.model.get_decoder()
    attention = decoder.layers[0].self_attn
    names = ("q_proj", "k_proj", "v_proj")
    if bias:
        for name in names:
            layer = getattr(attention, name)
            layer.bias = nn.Parameter(torch.randn(layer.out_features))
    linears = [getattr(attention, name) for name in names]
    replace_linears(subject.model)
    halves = [getattr(attention, name) for name in names]
    assert len({id(half.matrix) for half in halves}) == 1
    assert attention.o_proj.matrix is not halves[0].matrix
    x = torch.randn(3, linears[0].in_features)
    calls = []
    forward = Fp16Linear.forward
    for linear, half, made in zip(linears, halves, apply_linears(halves, x), strict=True):
        assert torch.equal(made, half(x)) and made.shape == (3, linear.out_features)
        assert torch.equal(half.state_dict()["weight"], linear.weight.detach().half().float())
        torch.testing.assert_close(half(x), linear(x), rtol=1e-2, atol=1e-3)
        assert half.packed_parameters == sum(p.numel() for p in linear.parameters())
    # Hooks of a layer run, and a layer that replaces another is called.
    halves[1].register_forward_hook(lambda *_: calls.append("hook"))
    again = apply_linears(halves, x)
    assert calls == ["hook"] and torch.equal(again[1], forward(halves[1], x))
    assert torch.equal(apply_linears([halves[0], linears[1]], x)[1], linears[1](x))
    twins = copy.deepcopy(attention)
    assert twins.q_proj.matrix is twins.k_proj.matrix is not halves[0].matrix
