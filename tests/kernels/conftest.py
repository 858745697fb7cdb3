"""The fused kernels run on a GPU, or by Triton's interpreter on the CPU."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from vip_llava.kernels import Dense, Int4, Int8, Matrix, reference


@pytest.fixture(scope="session")
def fused() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed")
    from vip_llava.kernels import fused
    from vip_llava.kernels.fused import launch

    if not launch.INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a GPU or TRITON_INTERPRET=1")
    return fused


class Maker:
    """Random tensors and weights from a fixed seed, on the device of the tests."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = torch.Generator().manual_seed(3)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, dtype)

    def levels(self, *shape: int) -> Tensor:
        return torch.randint(0, 16, shape, generator=self.generator, dtype=torch.uint8)

    def matrix(
        self, bits: int, outputs: int, inputs: int, dtype: torch.dtype, bias: bool = False
    ) -> Matrix:
        """Weights of magnitude 0.1; 16 bits stand for `dtype`."""
        more = self.randn(outputs, dtype=dtype) if bias else None
        weight = self.randn(outputs, inputs) * 0.1
        if bits == 16:
            return Dense(weight.to(dtype), more)
        if bits == 8:
            scale = weight.abs().amax(1) / 127
            whole = torch.round(weight / scale[:, None]).to(torch.int8)
            return Int8(whole, scale.to(dtype), more)
        packed = reference.packed_levels(self.levels(outputs, inputs // 32, 32))
        scale = self.randn(outputs, inputs // 32, 1, dtype=dtype) * 0.01
        low = self.randn(outputs, inputs // 32, 1, dtype=dtype) * 0.1
        return Int4(packed.to(self.device), scale, low, more)


@pytest.fixture
def make() -> Maker:
    return Maker()
