"""Linear layers with float16 weights and float32 arithmetic, for answering on a CPU.

A CPU that makes one token after the other spends its time reading weights; at half the size that
takes about half as long, and rounding to float16 moves an output by a few parts in ten thousand.
Nothing is quantized: every weight keeps 11 significant bits. torch has the product for x86 (FBGEMM).
Layers that read the same input (queries, keys and values; gate and up) lie below each other in one
block, because a product of few rows costs as much again in setting out.

It knows modules, not files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["HalfLinear", "can_halve", "halve", "products"]

_LARGEST = torch.finfo(torch.float16).max
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one parent that are given the same."""


class _Block:
    """Weights of one or several layers below each other, as FBGEMM wants them."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        """Either all of them have a bias or none. Raises ValueError where float16 can't hold one."""
        weight = torch.cat([linear.weight.detach().float() for linear in linears])
        low, high = (float(value) for value in weight.aminmax())
        if not (low >= -_LARGEST and high <= _LARGEST):  # NaN fails every comparison
            raise ValueError(f"a weight is not within {_LARGEST:g}, which float16 can hold")
        biases = [linear.bias.detach().float() for linear in linears if linear.bias is not None]
        bias = torch.cat(biases) if biases else None
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.outputs = [linear.out_features for linear in linears]

    def __call__(self, x: Tensor) -> Tensor:
        # By its full name: to look for the right one of several takes longer than a short product.
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed)
        return y

    def parts(self, y: Tensor) -> Sequence[Tensor]:
        """The outputs of each layer, of those of all."""
        return torch.split_with_sizes(y, self.outputs, -1)


class HalfLinear(nn.Module):
    """A linear layer with float16 weights: float32 [..., in] -> float32 [..., out].

    Error: each weight is off by at most one part in 2048 of itself, or by 2**-25 where it is smaller
    than 2**-14. Its `state_dict` is that of a float32 layer with the rounded weights.
    """

    def __init__(
        self, linear: nn.Linear, *, copy: bool = False, block: _Block | None = None, index: int = 0
    ) -> None:
        """`copy`: the weights are another module's too, and counted there. `block`: a made one in
        which this is layer `index`; called by itself, the layer then computes all of them.

        Raises ValueError for weights that float16 can't hold; `can_halve` says where this runs.
        """
        super().__init__()
        self._copy = copy
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block = block or _Block([linear])
        self._index = index

    @property
    def hidden_parameters(self) -> int:
        """Weights that are no parameters of torch any more."""
        return 0 if self._copy else sum(t.numel() for t in self._tensors().values())

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        y = self.block(x)
        return y if len(self.block.outputs) == 1 else self.block.parts(y)[self._index]

    def _tensors(self) -> dict[str, Tensor]:
        weight, bias = torch.ops.quantized.linear_unpack_fp16(self.block.packed)
        found = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        sizes, mine = self.block.outputs, self._index
        return {name: torch.split_with_sizes(t, sizes)[mine] for name, t in found.items()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in self._tensors().items():
            destination[prefix + name] = value


def products(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """What each of the layers makes of x; in one product where they are all of one block."""
    first = layers[0]
    if type(first) is HalfLinear and len(first.block.outputs) == len(layers):
        plain = all(
            type(layer) is HalfLinear
            and layer.block is first.block
            and not (layer._forward_hooks or layer._forward_pre_hooks)
            for layer in layers
        )
        if plain:
            return first.block.parts(first.block(x))
    return [layer(x) for layer in layers]


def can_halve(device: torch.device) -> bool:
    """Whether this torch has the product for this processor."""
    return device.type == "cpu" and torch.backends.quantized.engine in ("x86", "fbgemm")


def halve(model: PreTrainedModel) -> None:
    """Replace the language model's linear layers and the output matrix in place.

    Word embeddings stay as they are, also where the output matrix was the same tensor.
    """
    body: Any = model
    decoder = body.get_decoder()

    def replace(names: Sequence[str]) -> None:
        # Nobody else holds the layers: their float32 weights go at once.
        linears = [decoder.get_submodule(name) for name in names]
        block = _Block(linears)
        for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
            decoder.set_submodule(name, HalfLinear(linear, block=block, index=index))

    # torch packs a layer on one core.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(replace, list(_blocks(decoder))))
    head = body.get_output_embeddings()
    shared = head.weight is body.get_input_embeddings().weight
    body.set_output_embeddings(HalfLinear(head, copy=shared))


def _blocks(decoder: nn.Module) -> Iterator[list[str]]:
    """Names of all linear layers, those together that read the same."""
    for name, part in decoder.named_modules():
        linears = {key: one for key, one in part.named_children() if isinstance(one, nn.Linear)}
        for keys in _TOGETHER:
            chosen = [linears[key] for key in keys if key in linears]
            biases = {linear.bias is None for linear in chosen}
            widths = {linear.in_features for linear in chosen}
            if len(chosen) == len(keys) and len(biases) == len(widths) == 1:
                yield [f"{name}.{key}".lstrip(".") for key in keys]
                for key in keys:
                    del linears[key]
        for key in linears:
            yield [f"{name}.{key}".lstrip(".")]
