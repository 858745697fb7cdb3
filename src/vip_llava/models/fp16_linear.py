"""Linear layers with float16 weights and float32 arithmetic, for decoding on a CPU.

Decoding on a CPU is bound by reading weights; at half the size it takes about half as long, and
rounding to float16 changes an output by a few parts in ten thousand. Every weight keeps 11
significant bits. torch has the matrix product for x86 (FBGEMM). Layers with the same input (query,
key and value; gate and up) are packed into one matrix, because the fixed cost of a product of few
rows is as large as the product.

This module does not know files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Fp16Linear", "apply_linears", "replace_linears", "supports_fp16_linear"]

_LARGEST = torch.finfo(torch.float16).max
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that have the same input."""


class PackedMatrix:
    """Weights of one or several layers stacked into one matrix, in the format of FBGEMM."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        """Either all layers have a bias or none.

        Raises:
            ValueError: a weight that float16 cannot represent.
        """
        weight = torch.cat([linear.weight.detach().float() for linear in linears])
        low, high = (float(value) for value in weight.aminmax())
        if not (low >= -_LARGEST and high <= _LARGEST):  # NaN fails every comparison
            raise ValueError(f"a weight is not within {_LARGEST:g}, the range of float16")
        biases = [linear.bias.detach().float() for linear in linears if linear.bias is not None]
        bias = torch.cat(biases) if biases else None
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.outputs = [linear.out_features for linear in linears]

    def __call__(self, x: Tensor) -> Tensor:
        # The overload is named because its lookup takes longer than a short product.
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed)
        return y

    def split(self, y: Tensor) -> Sequence[Tensor]:
        """The outputs [..., out] of each layer from those of all layers."""
        return torch.split_with_sizes(y, self.outputs, -1)


class Fp16Linear(nn.Module):
    """A linear layer with float16 weights: float32 [..., in] -> float32 [..., out].

    Error: a weight w changes by at most |w| / 2048, or by 2**-25 if |w| is below 2**-14. The
    `state_dict` is that of a float32 layer with the rounded weights.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        tied: bool = False,
        matrix: PackedMatrix | None = None,
        index: int = 0,
    ) -> None:
        """Pack `linear`, or take layer `index` of `matrix`.

        Args:
            tied: the weights are another module's too, and counted there.

        Raises:
            ValueError: a weight that float16 cannot represent.
        """
        super().__init__()
        self._tied = tied
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.matrix = matrix or PackedMatrix([linear])
        self._index = index

    @property
    def packed_parameters(self) -> int:
        """Weights that are not parameters of torch any more."""
        return 0 if self._tied else sum(t.numel() for t in self._tensors().values())

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; the other layers of its matrix are computed as well."""
        y = self.matrix(x)
        return y if len(self.matrix.outputs) == 1 else self.matrix.split(y)[self._index]

    def _tensors(self) -> dict[str, Tensor]:
        weight, bias = torch.ops.quantized.linear_unpack_fp16(self.matrix.packed)
        found = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        sizes, index = self.matrix.outputs, self._index
        return {name: torch.split_with_sizes(t, sizes)[index] for name, t in found.items()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in self._tensors().items():
            destination[prefix + name] = value


def apply_linears(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """The outputs of layers for the same input; one product if they are all of one matrix."""
    first = layers[0]
    if type(first) is Fp16Linear and len(first.matrix.outputs) == len(layers):
        packed_together = all(
            type(layer) is Fp16Linear
            and layer.matrix is first.matrix
            and not (layer._forward_hooks or layer._forward_pre_hooks)
            for layer in layers
        )
        if packed_together:
            return first.matrix.split(first.matrix(x))
    return [layer(x) for layer in layers]


def supports_fp16_linear(device: torch.device) -> bool:
    """Whether this torch has the matrix product for the device."""
    return device.type == "cpu" and torch.backends.quantized.engine in ("x86", "fbgemm")


def replace_linears(model: PreTrainedModel) -> None:
    """Replace the language model's linear layers and the output matrix, in place.

    Embeddings stay float32, also if the output matrix was the same tensor.
    """
    body: Any = model
    decoder = body.get_decoder()

    def replace(names: Sequence[str]) -> None:
        # No other reference to the layers remains, so their float32 weights are freed at once.
        linears = [decoder.get_submodule(name) for name in names]
        matrix = PackedMatrix(linears)
        for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
            decoder.set_submodule(name, Fp16Linear(linear, matrix=matrix, index=index))

    # torch packs a matrix on one core.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(replace, list(_layer_groups(decoder))))
    head = body.get_output_embeddings()
    shared = head.weight is body.get_input_embeddings().weight
    body.set_output_embeddings(Fp16Linear(head, tied=shared))


def _layer_groups(decoder: nn.Module) -> Iterator[list[str]]:
    """Names of all linear layers, grouped by those with the same input."""
    for name, part in decoder.named_modules():
        linears = {key: one for key, one in part.named_children() if isinstance(one, nn.Linear)}
        for keys in _SAME_INPUT:
            chosen = [linears[key] for key in keys if key in linears]
            biases = {linear.bias is None for linear in chosen}
            widths = {linear.in_features for linear in chosen}
            if len(chosen) == len(keys) and len(biases) == len(widths) == 1:
                yield [f"{name}.{key}".lstrip(".") for key in keys]
                for key in keys:
                    del linears[key]
        for key in linears:
            yield [f"{name}.{key}".lstrip(".")]
