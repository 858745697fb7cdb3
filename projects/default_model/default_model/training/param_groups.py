"""Which parameters are trained, at which rates, and the trained weights that a run starts from.

It does not know batches and steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from default_model.training.recipe import StageRecipe
from vip_llava.errors import CheckpointError
from vip_llava.models.default.build import LORA_TARGETS, TrainedParts, load_trained, read_trained

_PIECES = ("tower", "projector", "lora", "language")


def set_trainable(model: Any, settings: StageRecipe) -> None:
    """Make the tower, the projector and the LoRA layers of a VipLlava trainable.

    The LoRA layers are added here; with rank 0, the whole language model is trainable. All other
    parameters are frozen, and so is a part whose rate is 0.
    """
    inner = model.model
    model.requires_grad_(False)
    if settings.lora_rank:
        # peft annotates alpha as int, but computes with alpha / r.
        alpha: Any = settings.lora_alpha
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=list(LORA_TARGETS),
        )
        inject_adapter_in_model(config, inner.language_model)
    else:
        inner.language_model.requires_grad_(True)
    if settings.lr_language == 0:
        inner.language_model.requires_grad_(False)
    elif settings.tuned_layers:
        # With a frozen projector, the layers below then need no gradient.
        inner.language_model.layers[: -settings.tuned_layers].requires_grad_(False)
    inner.vision_tower.requires_grad_(settings.lr_tower > 0)
    inner.multi_modal_projector.requires_grad_(settings.lr_projector > 0)


def start_from(model: Any, folders: Sequence[Path], settings: StageRecipe) -> None:
    """Load trained weights into a model with LoRA layers; the mean of several folders.

    Raises CheckpointError for weights that do not match the recipe or each other.
    """
    found = [_fitting(folder, settings) for folder in folders]
    parts, folder = _mean(found, folders), folders[0]
    load_trained(model, parts, folder)
    if not parts.lora:
        return
    letters = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    lora = {f"{k[:-1]}{letters[k[-1]]}": v for k, v in parts.lora.items()}
    try:
        result = model.model.language_model.load_state_dict(lora, strict=False)
    except RuntimeError as error:  # e.g. another rank
        raise CheckpointError(f"{folder}: the LoRA weights do not fit: {error}") from error
    missing = [k for k in result.missing_keys if ".lora_" in k]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{folder}: LoRA weights: missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}"
        )


def _fitting(folder: Path, s: StageRecipe) -> TrainedParts:
    parts = read_trained(folder)
    if bool(parts.lora) != bool(s.lora_rank):
        raise CheckpointError(
            f"{folder} was trained {'with' if parts.lora else 'without'} LoRA, and the recipe "
            f"has lora_rank {s.lora_rank}"
        )
    if parts.lora and not math.isclose(parts.lora_scale, s.lora_alpha / s.lora_rank):
        raise CheckpointError(
            f"{folder} has the LoRA scale {parts.lora_scale}, and the recipe lora_alpha / "
            f"lora_rank = {s.lora_alpha / s.lora_rank}"
        )
    return parts


def _mean(found: Sequence[TrainedParts], folders: Sequence[Path]) -> TrainedParts:
    """The mean of each weight; of the two LoRA matrices each, not of their product."""
    first = found[0]

    def mean(piece: str) -> dict[str, Tensor]:
        held: list[Mapping[str, Tensor]] = [getattr(parts, piece) for parts in found]
        shapes = [{name: value.shape for name, value in each.items()} for each in held]
        for each, folder in zip(shapes, folders, strict=True):
            if each != shapes[0]:
                raise CheckpointError(
                    f"{folder} and {folders[0]} have different weights ({piece}); "
                    "only weights of the same shapes have a mean"
                )
        return {k: torch.stack([each[k] for each in held]).mean(0) for k in held[0]}

    return TrainedParts(**{piece: mean(piece) for piece in _PIECES}, lora_scale=first.lora_scale)


def param_groups(model: Any, classifier: nn.Module, s: StageRecipe) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: each part at its rate, vectors without weight decay."""
    inner = model.model
    parts = (
        (inner.language_model, s.lr_language),
        (inner.multi_modal_projector, s.lr_projector),
        (classifier, s.lr_projector),
        (inner.vision_tower, s.lr_tower),
    )
    groups = []
    for module, rate in parts:
        trained = [p for p in module.parameters() if p.requires_grad]
        for chosen, decay in (
            ([p for p in trained if p.ndim > 1], s.weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ):
            if chosen:
                group = {"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay}
                groups.append(group)
    return groups
