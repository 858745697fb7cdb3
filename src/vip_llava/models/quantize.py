"""8- and 4-bit weights of the language model's linear layers; everything else stays as it is.

Two ways with one meaning: bitsandbytes on CUDA where it is installed, and plain torch everywhere
else. Image encoder, projector, embeddings, norms and output matrix keep their type, because they
are small and errors there show most. Weights are stored small and widened for each product, which
saves memory, not time; for few rows on CUDA the kernels read them as they are, which saves both.

It knows modules, not files.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from vip_llava.errors import QuantizationError
from vip_llava.kernels import Int4, Int8, for_device
from vip_llava.kernels import reference as plain

__all__ = [
    "Int4Linear",
    "Int8Linear",
    "Quantization",
    "parse_quantization",
    "quantize_model",
]

_BITS: dict[str, Literal[4, 8]] = {
    "8bit": 8, "8": 8, "int8": 8, "8-bit": 8,
    "4bit": 4, "4": 4, "int4": 4, "4-bit": 4,
}  # fmt: skip
LANGUAGE_MODEL = "model.language_model"
GROUP = 32
_FEW_ROWS = 64
"""Up to so many the kernels are asked; they know themselves what they are good at."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How many bits, and by what: this module's layers or those of bitsandbytes."""

    bits: Literal[4, 8]
    library: Literal["torch", "bitsandbytes"] = "torch"


def parse_quantization(value: str | int | None, device: torch.device) -> Quantization | None:
    """Read "8bit" or "4bit" ("int8" and "int4" ask for the plain torch layers by name).

    Raises:
        QuantizationError: another value.
    """
    if value is None:
        return None
    bits = _BITS.get(str(value).lower())
    if bits is None:
        raise QuantizationError(f"unknown quantization {value!r}; expected '8bit' or '4bit'")
    named = str(value).lower().startswith("int")
    fast = device.type == "cuda" and not named and find_spec("bitsandbytes") is not None
    return Quantization(bits, "bitsandbytes" if fast else "torch")


class _SmallLinear(nn.Module):
    """A linear layer with small weights: [..., in] -> [..., out] in the type of its input."""

    _plainly = False

    @property
    def matrix(self) -> Int8 | Int4:
        """The weights as kernels take them."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output in the type of `x`; gradients reach it by the plain way alone."""
        rows = x.reshape(-1, x.shape[-1])
        differentiable = torch.is_grad_enabled() and x.requires_grad
        kernels = for_device(x.device)
        found: torch.Tensor | None = None
        if not (kernels is plain or self._plainly or differentiable or len(rows) > _FEW_ROWS):
            try:
                found = kernels.rows(rows, [self.matrix])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler may say: the plain way is always there
                warnings.warn(f"a kernel failed and is not used again: {error}", stacklevel=2)
                self._plainly = True
        if found is None:
            found = plain.rows(rows, [self.matrix])
        return found.view(*x.shape[:-1], found.shape[-1])


class Int8Linear(_SmallLinear):
    """A linear layer with int8 weights and one scale for each output: [..., in] -> [..., out].

    Error: each weight is off by at most half a step, `max(|row|) / 254`, so an output is off by at
    most `sum(|x|) * max(|row|) / 254` (exact arithmetic).
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        full = linear.weight.detach().float()
        scale = full.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", torch.round(full / scale).to(torch.int8))
        self.register_buffer("scale", scale.squeeze(1).to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    @property
    def matrix(self) -> Int8:
        """The weights as kernels take them."""
        return Int8(self.weight, self.scale, self.bias)

    def dequantized(self) -> torch.Tensor:
        """The weights that the layer computes with, [out, in]."""
        return plain.dequantized(self.matrix)


class Int4Linear(_SmallLinear):
    """A linear layer with 4-bit weights, two in a byte, in groups of 32 inputs with range each.

    Error: each weight is off by at most half a step, `(max(group) - min(group)) / 30`, so an
    output is off by at most the sum of `|x|` times that (exact arithmetic).
    """

    packed: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, group: int = GROUP) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        group = min(group, self.in_features)
        if self.in_features % group or self.in_features % 2:
            raise QuantizationError(
                f"4-bit weights need a layer width divisible by {group}, not {self.in_features}"
            )
        full = linear.weight.detach().float().view(self.out_features, -1, group)
        low = full.amin(dim=2, keepdim=True)
        scale = (full.amax(dim=2, keepdim=True) - low).clamp(min=1e-12) / 15
        levels = torch.round((full - low) / scale).clamp(0, 15).to(torch.uint8)
        dtype = linear.weight.dtype
        self.register_buffer("packed", plain.packed_levels(levels))
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("low", low.to(dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    @property
    def matrix(self) -> Int4:
        """The weights as kernels take them."""
        return Int4(self.packed, self.scale, self.low, self.bias)

    def dequantized(self) -> torch.Tensor:
        """The weights that the layer computes with, [out, in]."""
        return plain.dequantized(self.matrix)


def quantize_model(
    model: PreTrainedModel, quantization: Quantization, device: torch.device | None = None
) -> int:
    """Replace the language model's linear layers in place; returns how many.

    `device`: where the small layers go, one by one, so that the full weights need not fit there.

    LoRA layers that were kept apart stay in full precision; the weights below them are quantized.

    Raises:
        QuantizationError: no linear layer is found, one is not in memory, or has an odd width.
    """
    body = model.get_submodule(LANGUAGE_MODEL)
    found = [
        (name, layer)
        for name, layer in body.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in f".{name}"
    ]
    if not found:
        raise QuantizationError("the language model has no linear layers to quantize")
    for name, layer in found:
        if layer.weight.device.type == "meta":
            raise QuantizationError(
                f"{name} was offloaded by the device map; quantization needs all weights in memory"
            )
        layer.to(device or layer.weight.device)
        body.set_submodule(name, _quantized(layer, quantization))
    return len(found)


def _quantized(layer: nn.Linear, quantization: Quantization) -> nn.Module:
    if quantization.library == "torch":
        new: nn.Module = Int8Linear(layer) if quantization.bits == 8 else Int4Linear(layer)
    else:
        new = _bitsandbytes_layer(layer, quantization.bits)
    hook = getattr(layer, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)
    return new


def _bitsandbytes_layer(layer: nn.Linear, bits: Literal[4, 8]) -> nn.Module:
    """bitsandbytes quantizes when the layer arrives on the GPU."""
    import bitsandbytes as bnb

    sizes = (layer.in_features, layer.out_features)
    bias = layer.bias is not None
    weight = layer.weight.detach().cpu()
    if bits == 8:
        new = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, threshold=6.0)
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        new = bnb.nn.Linear4bit(*sizes, bias=bias, compute_dtype=weight.dtype, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    if bias:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    replaced: nn.Module = new.to(layer.weight.device)
    return replaced
