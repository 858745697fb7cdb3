"""`MlpProjector`: the projectors that transformers' own classes do not have.

It does not know vision towers, language models or files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.layouts import PROJECTOR, format_names

__all__ = ["MlpProjector", "replace_projector"]


class MlpProjector(nn.Module):
    """Linear layers with GELU between them, optionally after a LayerNorm: [..., in] -> [..., out].

    Replaces transformers' two-layer projectors for the original's `linear` (one layer) and
    `mlpNx_gelu` (N layers), and for a LayerNorm in a LLaVA. Names of weights are transformers'.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], eps: float = 1e-5) -> None:
        """Layers of the sizes of `weights`, which are named as in `state_dict`; not yet loaded."""
        super().__init__()
        self.projector_layernorm: nn.Module = nn.Identity()
        norm = weights.get("projector_layernorm.weight")
        if norm is not None:
            self.projector_layernorm = nn.LayerNorm(norm.shape[0], eps=eps)
        self.linears = sum(name.endswith(".weight") for name in weights) - (norm is not None)
        for number in range(1, self.linears + 1):
            out, width = weights[f"linear_{number}.weight"].shape
            bias = f"linear_{number}.bias" in weights
            self.add_module(f"linear_{number}", nn.Linear(width, out, bias=bias))
        self.act = nn.GELU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features [..., in] to the language model's width [..., out]."""
        hidden: torch.Tensor = self.projector_layernorm(features)
        for number in range(1, self.linears + 1):
            hidden = self.get_submodule(f"linear_{number}")(
                hidden if number == 1 else self.act(hidden)
            )
        return hidden


def replace_projector(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], eps: float
) -> None:
    """Put an `MlpProjector` with these weights (canonical names) in place of the model's own.

    Raises:
        CheckpointError: weights of a layer are missing or unexpected.
    """
    own = {name.removeprefix(PROJECTOR): tensor for name, tensor in weights.items()}
    old = model.get_submodule(PROJECTOR.rstrip("."))
    place = next(old.parameters())
    new = MlpProjector(own, eps)
    if new.state_dict().keys() != own.keys():
        difference = new.state_dict().keys() ^ own.keys()
        raise CheckpointError(
            f"projector weights missing or unexpected: {format_names(difference)}"
        )
    new.load_state_dict(own)
    new.to(device=place.device, dtype=place.dtype)
    if (hook := getattr(old, "_hf_hook", None)) is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)
    model.set_submodule(PROJECTOR.rstrip("."), new)
