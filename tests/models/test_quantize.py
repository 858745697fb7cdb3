"""8- and 4-bit weights: weights within half a step, outputs within the documented bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vip_llava.errors import QuantizationError
from vip_llava.models.loading import load_weights
from vip_llava.models.quantize import (
    Int4Linear,
    Int8Linear,
    Quantization,
    parse_quantization,
    quantize_model,
)

ROUNDING = 1e-4


def half_steps(linear: nn.Linear, bits: int) -> torch.Tensor:
    """The documented bound of each weight's error: [out, in]."""
    weight = linear.weight.detach()
    if bits == 8:
        return (weight.abs().amax(dim=1, keepdim=True) / 254).expand_as(weight)
    grouped = weight.view(weight.shape[0], -1, min(32, weight.shape[1]))
    span = grouped.amax(dim=2, keepdim=True) - grouped.amin(dim=2, keepdim=True)
    return (span / 30).expand_as(grouped).reshape(weight.shape)


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    groups=st.integers(1, 4),
    out=st.integers(1, 9),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
    bias=st.booleans(),
)
def test_outputs_stay_within_the_bound(
    bits: int, groups: int, out: int, size: float, seed: int, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(32 * groups, out, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * size)
    layer = Int8Linear(linear) if bits == 8 else Int4Linear(linear)
    bound = half_steps(linear, bits) * (1 + ROUNDING)
    assert bool(((layer.dequantized() - linear.weight).abs() <= bound + 1e-9).all())
    x = torch.randn(3, 32 * groups, generator=generator)
    with torch.no_grad():
        error = (layer(x) - linear(x)).abs()
    allowed = x.abs() @ bound.T + ROUNDING * size
    assert bool((error <= allowed).all())


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_zero_and_constant_weights_are_exact(kind: Any) -> None:
    for value in (0.0, 2.5):
        linear = nn.Linear(64, 3)
        nn.init.constant_(linear.weight, value)
        assert torch.allclose(kind(linear).dequantized(), linear.weight, atol=1e-6)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.3), (4, 0.2)])
def test_weights_take_less_memory(bits: int, most: float) -> None:
    linear = nn.Linear(256, 256, bias=False)
    layer = Int8Linear(linear) if bits == 8 else Int4Linear(linear)
    stored = sum(buffer.nbytes for buffer in layer.buffers())
    # A quarter of float32; an eighth and the scale and minimum of each group.
    assert stored < (most + (0.07 if bits == 4 else 0)) * linear.weight.nbytes


@pytest.mark.parametrize(("bits", "close"), [("8bit", 0.02), ("4bit", 0.3)])
def test_logits_of_a_quantized_model_stay_close(
    bits: str, close: float, tiny_model_folder: Path
) -> None:
    full: Any = load_weights(tiny_model_folder, device="cpu")
    small: Any = load_weights(tiny_model_folder, device="cpu", quantization=bits)
    ids = torch.tensor([[1, 5, *[399] * 16, 7, 8]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = full(input_ids=ids, pixel_values=pixels).logits
        got = small(input_ids=ids, pixel_values=pixels).logits
    error = float((got - want).norm() / want.norm())
    assert 0 < error < close


def test_only_the_language_models_layers_change(tiny_model_folder: Path) -> None:
    model: Any = load_weights(tiny_model_folder, device="cpu", quantization="int4")
    kinds = {name: type(module) for name, module in model.named_modules()}
    small = {name for name, kind in kinds.items() if kind is Int4Linear}
    assert len(small) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in small)
    for kept in ("lm_head", "model.multi_modal_projector.linear_1"):
        assert kinds[kept] is nn.Linear


def test_half_precision_inputs(tiny_model_folder: Path) -> None:
    model: Any = load_weights(
        tiny_model_folder, device="cpu", dtype="bfloat16", quantization="8bit"
    )
    logits = model(input_ids=torch.tensor([[1, 5, 7]])).logits
    assert logits.dtype == torch.bfloat16 and torch.isfinite(logits).all()


def test_names_of_quantizations() -> None:
    cpu = torch.device("cpu")
    assert parse_quantization(None, cpu) is None
    assert parse_quantization("8bit", cpu) == Quantization(8)
    assert parse_quantization(4, cpu) == Quantization(4)
    for bad in ("3bit", "", "nf4", 16):
        with pytest.raises(QuantizationError, match="'8bit' or '4bit'"):
            parse_quantization(bad, cpu)


def test_layers_that_cannot_be_quantized_are_errors(tiny_model_folder: Path) -> None:
    with pytest.raises(QuantizationError, match="32"):
        Int4Linear(nn.Linear(33, 2))
    model: Any = load_weights(tiny_model_folder, device="cpu", quantization="8bit")
    with pytest.raises(QuantizationError, match="no linear layers"):
        quantize_model(model, Quantization(8))


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_a_kernel_that_fails_is_not_used_again(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        asked = 0

        def linear(self, *_: Any) -> torch.Tensor:
            self.asked += 1
            raise RuntimeError("no compiler")

    broken = Broken()
    layer, x = kind(nn.Linear(64, 5)), torch.randn(2, 3, 64)
    wanted = layer(x)
    monkeypatch.setattr("vip_llava.models.quantize.for_device", lambda _: broken)
    with pytest.warns(UserWarning, match="no compiler"):
        assert torch.equal(layer(x), wanted)
    assert torch.equal(layer(x), wanted)
    assert broken.asked == 1
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
