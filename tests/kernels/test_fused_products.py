"""Triton's products against the plain ones, in the formats, shapes and types that models have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import Norm, plain

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(32, (40, 16, 16)), (96, (35,)), (1056, (17, 10))]
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
        found = fused.rows(x, matrices, residual, norm)
        assert found.dtype == dtype
        # One row times 4-bit weights is made with numbers that hold less than all of them.
        close = max(1e-4 if rows == 1 and bits == 4 else 0, CLOSE[dtype])
        assert apart(found, plain.rows(x, matrices, residual, norm)) < close
        up = make.matrix(bits, sizes[0], inputs, dtype, bias)
        found = fused.gated_rows(x, matrices[0], up, norm)
        assert apart(found, plain.gated_rows(x, matrices[0], up, norm)) < close


def test_rows_do_not_depend_on_their_neighbours(fused: Any, make: Any) -> None:
    x = make.randn(4, 352)
    for bits in (16, 8, 4):
        matrix = make.matrix(bits, 40, 352, torch.float32)
        whole = fused.rows(x, [matrix])
        other = x.clone()
        other[[0, 1, 3]] = float("nan")
        assert torch.equal(fused.rows(other, [matrix])[2], whole[2])


@pytest.mark.parametrize("rows", [1, 2])
def test_odd_weights_go_the_plain_way(fused: Any, make: Any, rows: int) -> None:
    x = make.randn(rows, 24)
    mixed = [make.matrix(16, 8, 24, torch.float32), make.matrix(8, 8, 24, torch.float32, bias=True)]
    turned = make.matrix(16, 24, 8, torch.float32)
    turned = type(turned)(turned.weight.t(), None)
    four = [make.matrix(16, 8, 24, torch.float32)] * 4
    for matrices in (mixed, [turned], four):
        torch.testing.assert_close(fused.rows(x, matrices), plain.rows(x, matrices))


def test_views_of_wider_rows(fused: Any, make: Any) -> None:
    wide = make.randn(2, 96)
    matrix = make.matrix(16, 8, 64, torch.float32)
    x = wide[:, 32:]
    torch.testing.assert_close(fused.rows(x, [matrix]), plain.rows(x, [matrix]))


def test_one_matrix_with_bias_and_residual(fused: Any, make: Any) -> None:
    x, residual = make.randn(1, 64), make.randn(1, 16)
    for bits in (16, 8, 4):
        matrix = make.matrix(bits, 16, 64, torch.float32, True)
        wanted = plain.rows(x, [matrix], residual)
        found = fused.rows(x, [matrix], residual)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
