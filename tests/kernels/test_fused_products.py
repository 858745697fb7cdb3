"""Triton's products against the reference, in the formats, shapes and dtypes of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import Int4, Int8, Norm, reference

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(32, (40, 16, 16)), (96, (19,)), (608, (9, 6))]
# Bias, norm, residual: each pair of them both ways.
EXTRAS = [(False, False, False), (True, False, True), (False, True, True), (True, True, False)]


def apart(found: Tensor, wanted: Tensor) -> float:
    """The relative distance; NaN where something was not written."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@torch.inference_mode()
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (1, torch.float32),
        (1, torch.bfloat16),
        (3, torch.bfloat16),
        (3, torch.float16),
        (20, torch.float32),
        (65, torch.float32),
    ],
)
def test_products(fused: Any, make: Any, bits: int, dtype: torch.dtype, rows: int) -> None:
    for (inputs, sizes), (bias, normed, more) in zip([*SHAPES, SHAPES[0]], EXTRAS, strict=True):
        x = make.randn(rows, inputs, dtype=dtype)
        matrices = [make.matrix(bits, size, inputs, dtype, bias) for size in sizes]
        norm = Norm(make.randn(inputs, dtype=dtype), 1e-5) if normed else None
        residual = make.randn(rows, sum(sizes), dtype=dtype) if more else None
        found = fused.linear(x, matrices, residual, norm)
        assert found.dtype == dtype
        # With quantized weights a single row is rounded to 16 bits in groups.
        close = max(2e-4 if rows == 1 and bits < 16 else 0, CLOSE[dtype])
        assert apart(found, reference.linear(x, matrices, residual, norm)) < close
        up = make.matrix(bits, sizes[0], inputs, dtype, bias)
        found = fused.swiglu(x, matrices[0], up, norm)
        assert apart(found, reference.swiglu(x, matrices[0], up, norm)) < close


def test_rows_do_not_depend_on_their_neighbours(fused: Any, make: Any) -> None:
    x = make.randn(4, 352)
    for bits in (16, 8, 4):
        matrix = make.matrix(bits, 40, 352, torch.float32)
        whole = fused.linear(x, [matrix])
        other = x.clone()
        other[[0, 1, 3]] = float("nan")
        assert torch.equal(fused.linear(other, [matrix])[2], whole[2])


@pytest.mark.parametrize("rows", [1, 2])
def test_unsupported_weights_use_the_reference(fused: Any, make: Any, rows: int) -> None:
    x = make.randn(rows, 24)
    mixed = [make.matrix(16, 8, 24, torch.float32), make.matrix(8, 8, 24, torch.float32, bias=True)]
    turned = make.matrix(16, 24, 8, torch.float32)
    turned = type(turned)(turned.weight.t(), None)
    four = [make.matrix(16, 8, 24, torch.float32)] * 4
    for matrices in (mixed, [turned], four):
        torch.testing.assert_close(fused.linear(x, matrices), reference.linear(x, matrices))


def test_views_of_wider_rows(fused: Any, make: Any) -> None:
    wide = make.randn(2, 96)
    matrix = make.matrix(16, 8, 64, torch.float32)
    x = wide[:, 32:]
    torch.testing.assert_close(fused.linear(x, [matrix]), reference.linear(x, [matrix]))


def test_one_matrix_with_bias_and_residual(fused: Any, make: Any) -> None:
    x, residual = make.randn(1, 64), make.randn(1, 16)
    for bits in (16, 8, 4):
        matrix = make.matrix(bits, 16, 64, torch.float32, True)
        wanted = reference.linear(x, [matrix], residual)
        found = fused.linear(x, [matrix], residual)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def rounded(x: Tensor, group: int) -> Tensor:
    """A row as the kernels quantize it, in float64: 16 bits of the largest value of each group."""
    groups = x.double().view(-1, group)
    step = groups.abs().amax(1, keepdim=True) / 32512
    return (torch.round(groups / step.clamp(min=1e-30)) * step).view(x.shape)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_row_with_quantized_weights_is_rounded_to_16_bits(
    fused: Any, make: Any, bits: int
) -> None:
    group = 128 // bits
    # Very different magnitudes in each group, a group of zeros, and one of a single number.
    x = make.randn(1, 96) * 10 ** make.randn(1, 96)
    x[:, group : 2 * group] = 0
    x[:, -group:] = 0
    x[:, -3] = -7e4
    matrix = make.matrix(bits, 24, 96, torch.float32)
    wanted = rounded(x, group) @ reference.dequantized(matrix).double().T
    assert apart(fused.linear(x, [matrix]), wanted) < 1e-6
    assert apart(fused.linear(x, [matrix]), reference.linear(x, [matrix])) > 1e-8


@pytest.mark.parametrize("bits", [8, 4])
def test_products_of_integers_are_exact(fused: Any, make: Any, bits: int) -> None:
    """Every byte of a row is multiplied correctly, including signs and carries."""
    group = 128 // bits
    whole = torch.tensor([32512, -32512, 127, 128, 129, -127, -128, -129, 255, 256, -256, 1, -1, 0])
    for turn in (0, 5):
        at = (torch.arange(96) + turn) % len(whole)
        x = whole[at].float().view(1, -1).to(make.device)
        x[:, ::group] = 32512  # so that integers are represented exactly
        matrix = make.matrix(bits, 16, 96, torch.float32)
        if isinstance(matrix, Int8):
            matrix = Int8(matrix.weight, torch.ones_like(matrix.scale))
        else:
            zeros = torch.zeros_like(matrix.low)
            matrix = Int4(matrix.packed, torch.ones_like(matrix.scale), zeros)
        wanted = x.double() @ reference.dequantized(matrix).double().T
        assert apart(fused.linear(x, [matrix]), wanted) < 2e-7


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("bits", [8, 4])
def test_nan_and_infinity_propagate(fused: Any, make: Any, bits: int) -> None:
    x = make.randn(1, 96)
    for value in (float("nan"), float("inf")):
        x[0, 37] = value
        assert not fused.linear(x, [make.matrix(bits, 16, 96, torch.float32)]).isfinite().any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layout", [(4, 4, 1, 1), (8, 2, 2, 2)])
def test_programs_that_share_tiles(
    fused: Any, make: Any, monkeypatch: pytest.MonkeyPatch, bits: int, layout: tuple[int, ...]
) -> None:
    from vip_llava.kernels.fused import matmul, tuned_configs

    config = tuned_configs.IntGemvConfig(*layout)
    monkeypatch.setattr(tuned_configs, "int_gemv_config", lambda *_: config)
    monkeypatch.setattr(matmul, "num_processors", lambda _: 2)
    x = make.randn(1, 160)
    matrices = [make.matrix(bits, size, 160, torch.float32) for size in (12, 8, 5)]
    norm = Norm(make.randn(160), 1e-5)
    assert (
        apart(fused.linear(x, matrices, None, norm), reference.linear(x, matrices, None, norm))
        < 2e-4
    )
    gated = [make.matrix(bits, 13, 160, torch.float32) for _ in range(2)]
    assert apart(fused.swiglu(x, *gated, norm), reference.swiglu(x, *gated, norm)) < 2e-4
