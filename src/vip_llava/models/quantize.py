"""8- and 4-bit weights for the language model's linear layers.

bitsandbytes does it on CUDA if it is installed, torch otherwise. Vision tower, projector,
embeddings, norms and output matrix keep their type, because they are small and sensitive. Weights
are dequantized for each product, which saves memory, not time; for few rows on CUDA the kernels
read the quantized weights, which saves both.

This module does not know files.
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
from vip_llava.kernels import Int4, Int8, for_device, reference

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
_MAX_KERNEL_ROWS = 64
"""Most rows for which a kernel is tried; it may decline fewer."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """The number of bits, and whose layers: this module's ("torch") or those of bitsandbytes."""

    bits: Literal[4, 8]
    library: Literal["torch", "bitsandbytes"] = "torch"


def parse_quantization(value: str | int | None, device: torch.device) -> Quantization | None:
    """Parse "8bit" or "4bit"; "int8" and "int4" exclude bitsandbytes.

    Raises:
        QuantizationError: another value.
    """
    if value is None:
        return None
    bits = _BITS.get(str(value).lower())
    if bits is None:
        raise QuantizationError(f"unknown quantization {value!r}; expected '8bit' or '4bit'")
    torch_only = str(value).lower().startswith("int") or device.type != "cuda"
    if torch_only or find_spec("bitsandbytes") is None:
        return Quantization(bits)
    return Quantization(bits, "bitsandbytes")


class _QuantizedLinear(nn.Module):
    """A linear layer with quantized weights: [..., in] -> [..., out] in the type of its input."""

    _kernel_failed = False

    @property
    def matrix(self) -> Int8 | Int4:
        """The weights in the kernels' format."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output in the type of `x`; by the reference where gradients are needed."""
        rows = x.reshape(-1, x.shape[-1])
        differentiable = torch.is_grad_enabled() and x.requires_grad
        kernels = for_device(x.device)
        output: torch.Tensor | None = None
        if not (
            kernels is reference
            or self._kernel_failed
            or differentiable
            or len(rows) > _MAX_KERNEL_ROWS
        ):
            try:
                output = kernels.linear(rows, [self.matrix])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers raise many types; the reference always works
                warnings.warn(f"a kernel failed and is not used again: {error}", stacklevel=2)
                self._kernel_failed = True
        if output is None:
            output = reference.linear(rows, [self.matrix])
        return output.view(*x.shape[:-1], output.shape[-1])


class Int8Linear(_QuantizedLinear):
    """A linear layer with int8 weights and one scale per output: [..., in] -> [..., out].

    Error: a weight changes by at most half a step, `max(|row|) / 254`, so an output changes by at
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
        """The weights in the kernels' format."""
        return Int8(self.weight, self.scale, self.bias)

    def dequantized(self) -> torch.Tensor:
        """The dequantized weights, [out, in]."""
        return reference.dequantized(self.matrix)


class Int4Linear(_QuantizedLinear):
    """A linear layer with 4-bit weights, two per byte, and a range per group of 32 inputs.

    Error: a weight changes by at most half a step, `(max(group) - min(group)) / 30`, so an output
    changes by at most the sum of `|x|` times that (exact arithmetic).
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
        self.register_buffer("packed", reference.packed_levels(levels))
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("low", low.to(dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    @property
    def matrix(self) -> Int4:
        """The weights in the kernels' format."""
        return Int4(self.packed, self.scale, self.low, self.bias)

    def dequantized(self) -> torch.Tensor:
        """The dequantized weights, [out, in]."""
        return reference.dequantized(self.matrix)


def quantize_model(
    model: PreTrainedModel, quantization: Quantization, device: torch.device | None = None
) -> int:
    """Replace the language model's linear layers in place; return their number.

    LoRA layers of peft stay in full precision; the weights below them are quantized.

    Args:
        device: where the quantized layers are moved one by one, so that the full weights need not
            fit there.

    Raises:
        QuantizationError: there is no linear layer, one is not in memory, or its width is not a
            multiple of the group size.
    """
    decoder = model.get_submodule(LANGUAGE_MODEL)
    linears = [
        (name, layer)
        for name, layer in decoder.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in f".{name}"
    ]
    if not linears:
        raise QuantizationError("the language model has no linear layers to quantize")
    for name, layer in linears:
        if layer.weight.device.type == "meta":
            raise QuantizationError(
                f"the device map offloads {name}; quantization needs all weights in memory"
            )
        layer.to(device or layer.weight.device)
        decoder.set_submodule(name, _quantized(layer, quantization))
    return len(linears)


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
    """A layer that bitsandbytes quantizes when it is moved to the GPU."""
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
    quantized: nn.Module = new.to(layer.weight.device)
    return quantized
