"""How much 8- and 4-bit weights of a random Llama change its logits, and how much the kernels add.

Random weights are the hardest case: none is small, and every layer amplifies earlier errors. It runs
in float32 on the CPU, so that the only errors are those of the weights and, for the kernels, of a row
rounded to 16 bits as they do it.

    python benchmarks/small_weights.py [--width 1024] [--depths 1,2,4,8,16,32]
"""

from __future__ import annotations

import argparse
import copy
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vip_llava.kernels import reference
from vip_llava.models.quantize import Int4Linear, Int8Linear

Quantized = type[Int8Linear] | type[Int4Linear]


def rounded(x: Tensor, group: int) -> Tensor:
    """Each group of inputs rounded to 65025 steps between minus and plus its largest value."""
    groups = x.reshape(*x.shape[:-1], -1, group)
    step = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 32512
    return (torch.round(groups / step) * step).reshape(x.shape)


def as_kernels(layer: Int8Linear | Int4Linear, x: Tensor) -> Tensor:
    group = 16 if isinstance(layer, Int8Linear) else 32
    found = reference.linear(rounded(x, group).reshape(-1, x.shape[-1]), [layer.matrix])
    return found.view(*x.shape[:-1], -1)


def with_quantized(model: nn.Module, kind: Quantized, kernels: bool) -> nn.Module:
    """A copy with quantized weights in its layers."""
    quantized = copy.deepcopy(model)
    for name, layer in list(quantized.get_submodule("model.layers").named_modules()):
        if isinstance(layer, nn.Linear):
            new = kind(layer)
            if kernels:
                new.forward = MethodType(as_kernels, new)  # type: ignore[method-assign]
            quantized.set_submodule(f"model.layers.{name}", new)
    return quantized


@torch.inference_mode()
def measure(width: int, depth: int, vocabulary: int = 4000, tokens: int = 24) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16 // 32 * 32,
        num_hidden_layers=depth,
        num_attention_heads=width // 128,
        vocab_size=vocabulary,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))

    def logits(of: nn.Module) -> Tensor:
        found: Tensor = of(ids).logits[0].float()
        return found

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    wanted = logits(model)
    cells = [f"{apart(logits(copy.deepcopy(model).bfloat16()), wanted):.1%}"]
    for kind in (Int8Linear, Int4Linear):
        exact = logits(with_quantized(model, kind, kernels=False))
        same = (exact.argmax(-1) == wanted.argmax(-1)).float().mean()
        added = apart(logits(with_quantized(model, kind, kernels=True)), exact)
        cells += [f"{apart(exact, wanted):.1%}", f"{same:.0%}", f"{added:.4%}"]
    print(f"| {width} | {depth} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depths", default="1,2,4,8,16,32")
    options = parser.parse_args()
    print(f"torch {torch.__version__}")
    print(
        "| width | layers | bfloat16 | 8 bits | same token | kernels | 4 bits | same token | kernels |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for depth in options.depths.split(","):
        measure(options.width, int(depth))
