"""Linear layers with float16 weights and float32 arithmetic, for answering on a CPU.

A CPU that makes one token after the other spends its time reading weights; at half the size that
takes about half as long, and rounding to float16 moves an output by a few parts in ten thousand.
Nothing is quantized: every weight keeps 11 significant bits. torch has the product for x86 (FBGEMM).

It knows modules, not files.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["HalfLinear", "can_halve", "halve"]

_LARGEST = torch.finfo(torch.float16).max


class HalfLinear(nn.Module):
    """A linear layer with float16 weights: float32 [..., in] -> float32 [..., out].

    Error: each weight is off by at most one part in 2048 of itself, or by 2**-25 where it is smaller
    than 2**-14. Its `state_dict` is that of a float32 layer with the rounded weights.
    """

    def __init__(self, linear: nn.Linear, *, copy: bool = False) -> None:
        """`copy`: the weights are another module's too, and counted there.

        Raises ValueError for weights that float16 can't hold; `can_halve` says where this runs.
        """
        super().__init__()
        self._copy = copy
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float().contiguous()
        low, high = (float(value) for value in weight.aminmax())
        if not (low >= -_LARGEST and high <= _LARGEST):  # NaN fails every comparison
            raise ValueError(f"a weight is not within {_LARGEST:g}, which float16 can hold")
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    @property
    def hidden_parameters(self) -> int:
        """Weights that are no parameters of torch any more."""
        return 0 if self._copy else sum(t.numel() for t in self._tensors().values())

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        # By its full name: to look for the right one of several takes longer than a short product.
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, self._packed)
        return y

    def _tensors(self) -> dict[str, Tensor]:
        weight, bias = torch.ops.quantized.linear_unpack_fp16(self._packed)
        return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in self._tensors().items():
            destination[prefix + name] = value


def can_halve(device: torch.device) -> bool:
    """Whether this torch has the product for this processor."""
    return device.type == "cpu" and torch.backends.quantized.engine in ("x86", "fbgemm")


def halve(model: PreTrainedModel) -> None:
    """Replace the language model's linear layers and the output matrix in place.

    Word embeddings stay as they are, also where the output matrix was the same tensor.
    """
    body: Any = model
    decoder = body.get_decoder()
    names = [name for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)]

    def replace(name: str) -> None:
        # Nobody else holds the layer: its float32 weights go at once.
        decoder.set_submodule(name, HalfLinear(decoder.get_submodule(name)))

    # torch packs a layer on one core.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(replace, names))
    head = body.get_output_embeddings()
    shared = head.weight is body.get_input_embeddings().weight
    body.set_output_embeddings(HalfLinear(head, copy=shared))
