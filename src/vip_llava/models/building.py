"""From an opened checkpoint to a transformers model: checked, placed, adapted, quantized.

transformers' own classes are used as they are; what they lack (other projectors, an image id past
the embedding table) is put in from `towers.py`. It reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    VipLlavaForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from vip_llava.errors import CheckpointError
from vip_llava.models.adapters import apply_adapter
from vip_llava.models.checkpoints import EMBEDDING, HEAD, Checkpoint
from vip_llava.models.hub import Progress
from vip_llava.models.layouts import PROJECTOR, TOWER, listed
from vip_llava.models.placement import Placement
from vip_llava.models.processor_loading import token_limits
from vip_llava.models.quantize import quantize_model
from vip_llava.models.spec import transformers_config
from vip_llava.models.truncate_layers import (
    StackedProjector,
    guard_placeholder,
    keep_only_used_states,
    needed,
    stopped,
)

__all__ = ["build", "check_weights"]


def build(
    checkpoint: Checkpoint,
    placement: Placement,
    merge_adapter: bool = True,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """A transformers model of an opened checkpoint, in evaluation mode."""
    tell = progress or (lambda stage, done, total: None)
    tell("loading weights", 0, 1)
    if placement.quantization is None or placement.device_map is not None:
        model = _assemble(checkpoint, placement)
    else:
        # The full weights may not fit where the small ones will: start on the CPU.
        model = _assemble(checkpoint, replace(placement, device=torch.device("cpu")))
    if checkpoint.adapter is not None:
        model = apply_adapter(model, checkpoint.adapter, merge_adapter)
    if placement.quantization is not None:
        if placement.device_map is None:
            quantize_model(model, placement.quantization, placement.device)
            move: nn.Module = model
            move.to(placement.device)
        else:
            quantize_model(model, placement.quantization)
    keep_only_used_states(model)
    guard_placeholder(model, checkpoint.blueprint.image_token_id)
    for name, value in token_limits(checkpoint).items():
        setattr(model.generation_config, name, value)
    model.train(False)
    tell("loading weights", 1, 1)
    return model


def _assemble(checkpoint: Checkpoint, placement: Placement) -> PreTrainedModel:
    blueprint = stopped(checkpoint.blueprint)
    tensors = dict(checkpoint.tensors)
    if blueprint.clip:
        tensors = needed(tensors, int(blueprint.vision["num_hidden_layers"]))
    _untie_if_different(blueprint.text, tensors)
    config = transformers_config(blueprint)
    norm = blueprint.projector.norm
    cls = VipLlavaForConditionalGeneration if norm else LlavaForConditionalGeneration
    usual = blueprint.projector.linears == 2
    tensors = check_weights(cls, config, tensors, checkpoint, usual)
    projector = {n: t for n, t in tensors.items() if n.startswith(PROJECTOR)}
    if not usual:
        tensors = {n: t for n, t in tensors.items() if n not in projector}
    model = _from_tensors(cls, config, tensors, placement)
    if not usual:
        eps = float(blueprint.notes.get("projector_layernorm_eps", 1e-5))
        _swap_projector(model, projector, eps)
    return model


def _untie_if_different(text: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """A checkpoint with its own output matrix has one, whatever its configuration claims."""
    head = tensors.get(HEAD)
    if text.get("tie_word_embeddings") and head is not None:
        text["tie_word_embeddings"] = torch.equal(head, tensors[EMBEDDING])


def _from_tensors(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    placement: Placement,
) -> PreTrainedModel:
    where = placement.device_map
    if where is None and placement.device.type != "cpu":
        where = {"": placement.device}
    with quiet():
        model: PreTrainedModel = cls.from_pretrained(
            None, config=config, state_dict=tensors, dtype=placement.dtype, device_map=where
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of transformers: the checks here are stricter than its own."""
    library: Any = transformers_logging
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


def check_weights(
    cls: Callable[[Any], PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    usual_projector: bool,
) -> dict[str, torch.Tensor]:
    """Compare all names and shapes with the model's before anything is loaded.

    Returns the tensors, those of the encoder renamed where its class has one more level.

    Raises:
        CheckpointError: weights missing, unexpected or of another shape, by their names in the file.
    """
    with torch.device("meta"), quiet():
        expected = {name: t.shape for name, t in cls(config).state_dict().items()}
    tensors = _with_tower_level(tensors, expected)
    ours = PROJECTOR if not usual_projector else "\0"
    missing = {n for n in expected.keys() - tensors.keys() if not n.startswith(ours)}
    if config.tie_word_embeddings:
        missing.discard(HEAD)
    unexpected = {n for n in tensors.keys() - expected.keys() if not n.startswith(ours)}
    where = checkpoint.folders[0]

    def named(names: set[str]) -> str:
        return listed(checkpoint.spelled.get(name, name) for name in names) or "none"

    if missing or unexpected:
        raise CheckpointError(
            f"{where}: weights missing: {named(missing)}; unexpected: {named(unexpected)}"
        )
    wrong = [
        f"{checkpoint.spelled.get(name, name)} is {tuple(tensor.shape)}, expected "
        f"{tuple(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and not name.startswith(ours) and tensor.shape != expected[name]
    ]
    if wrong:
        raise CheckpointError(f"{where}: weights of another shape: {listed(wrong)}")
    return tensors


def _with_tower_level(
    tensors: dict[str, torch.Tensor], expected: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Encoders other than CLIP may still call their insides `vision_model`."""
    deeper = f"{TOWER}vision_model."
    if not any(name.startswith(deeper) for name in expected):
        return tensors
    return {
        deeper + name.removeprefix(TOWER) if name.startswith(TOWER) else name: tensor
        for name, tensor in tensors.items()
    }


def _swap_projector(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], eps: float
) -> None:
    """Put our projector where transformers' two-layer one doesn't fit."""
    plain = {name.removeprefix(PROJECTOR): tensor for name, tensor in weights.items()}
    old = model.get_submodule(PROJECTOR.rstrip("."))
    place = next(old.parameters())
    new = StackedProjector(plain, eps)
    if new.state_dict().keys() != plain.keys():
        difference = new.state_dict().keys() ^ plain.keys()
        raise CheckpointError(f"projector weights missing or unexpected: {listed(difference)}")
    new.load_state_dict(plain)
    new.to(device=place.device, dtype=place.dtype)
    if (hook := getattr(old, "_hf_hook", None)) is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)
    model.set_submodule(PROJECTOR.rstrip("."), new)
