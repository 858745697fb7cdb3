"""Builds a transformers model from an opened checkpoint: checked, placed, adapted, quantized.

transformers' own classes are used as they are. What they lack is added: other projectors, and an
image token id past the embedding table. This module reads no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    VipLlavaForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from vip_llava.errors import CheckpointError
from vip_llava.models.adapters import apply_lora
from vip_llava.models.checkpoints import EMBEDDING, HEAD, Checkpoint
from vip_llava.models.hub import Progress
from vip_llava.models.image_token import allow_image_token
from vip_llava.models.layouts import PROJECTOR, TOWER, format_names
from vip_llava.models.placement import Placement
from vip_llava.models.processor_loading import special_token_ids
from vip_llava.models.projector import replace_projector
from vip_llava.models.quantize import quantize_model
from vip_llava.models.spec import ModelSpec, transformers_config
from vip_llava.models.truncate_layers import (
    drop_unused_layers,
    record_only_used_states,
    truncate_layers,
)

__all__ = ["build_model", "model_class", "silence_transformers"]


def build_model(
    checkpoint: Checkpoint,
    placement: Placement,
    merge_adapter: bool = True,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """The transformers model of an opened checkpoint, in evaluation mode.

    Raises:
        CheckpointError: weights are missing, unexpected or of another shape.
        QuantizationError: the model cannot be quantized as asked.
    """
    report = progress or (lambda stage, done, total: None)
    report("loading weights", 0, 1)
    if placement.quantization is None or placement.device_map is not None:
        model = _assemble(checkpoint, placement)
    else:
        # The full weights may not fit where the quantized ones will, so they start on the CPU.
        model = _assemble(checkpoint, replace(placement, device=torch.device("cpu")))
    if checkpoint.adapter is not None:
        model = apply_lora(model, checkpoint.adapter, merge_adapter)
    if placement.quantization is not None:
        if placement.device_map is None:
            quantize_model(model, placement.quantization, placement.device)
            module: nn.Module = model
            module.to(placement.device)
        else:
            quantize_model(model, placement.quantization)
    record_only_used_states(model)
    allow_image_token(model, checkpoint.spec.image_token_id)
    for name, value in special_token_ids(checkpoint).items():
        setattr(model.generation_config, name, value)
    model.train(False)
    report("loading weights", 1, 1)
    return model


def model_class(spec: ModelSpec) -> type[PreTrainedModel]:
    """The transformers class of a spec."""
    return VipLlavaForConditionalGeneration if spec.is_vip_llava else LlavaForConditionalGeneration


def _assemble(checkpoint: Checkpoint, placement: Placement) -> PreTrainedModel:
    spec = truncate_layers(checkpoint.spec)
    tensors = drop_unused_layers(checkpoint.tensors, spec)
    _untie_if_different(spec.text, tensors)
    config = transformers_config(spec)
    tensors = _rename_tower_weights(config, tensors)
    _check_weights(spec, config, tensors, checkpoint)
    projector: dict[str, torch.Tensor] = {}
    if not spec.has_standard_projector:
        projector = {n: t for n, t in tensors.items() if n.startswith(PROJECTOR)}
        tensors = {n: t for n, t in tensors.items() if n not in projector}
    model = _from_tensors(model_class(spec), config, tensors, placement)
    if projector:
        eps = float(spec.metadata.get("projector_layernorm_eps", 1e-5))
        replace_projector(model, projector, eps)
    return model


def _untie_if_different(text: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Untie the output matrix of a checkpoint that has one of its own, whatever its config says."""
    head = tensors.get(HEAD)
    if text.get("tie_word_embeddings") and head is not None:
        text["tie_word_embeddings"] = torch.equal(head, tensors[EMBEDDING])


def _from_tensors(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    placement: Placement,
) -> PreTrainedModel:
    device_map = placement.device_map
    if device_map is None and placement.device.type != "cpu":
        device_map = {"": placement.device}
    with silence_transformers():
        model: PreTrainedModel = cls.from_pretrained(
            None, config=config, state_dict=tensors, dtype=placement.dtype, device_map=device_map
        )
    return model


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Turn off transformers' progress bars and loading reports; the checks here are stricter."""
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


def _rename_tower_weights(config: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the tower's weights as the installed transformers does, which renames some on loading.

    Weights that already have those names stay memory-mapped. Missing and unexpected ones keep
    their names, for `_check_weights` to report.
    """
    own = {k.removeprefix(TOWER): t for k, t in tensors.items() if k.startswith(TOWER)}
    with torch.device("meta"), silence_transformers():
        auto: Any = AutoModel
        outline: PreTrainedModel = auto.from_config(config.vision_config)
    expected = outline.state_dict().keys()
    if expected == own.keys():
        return tensors
    deeper = {f"vision_model.{name}": tensor for name, tensor in own.items()}
    if expected == deeper.keys():
        renamed = deeper
    else:
        dtypes = {tensor.dtype for tensor in own.values()}
        with silence_transformers():
            cls: Any = type(outline)
            tower, info = cls.from_pretrained(
                None,
                config=config.vision_config,
                state_dict=own,
                dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            return tensors
        renamed = tower.state_dict()
    others = {name: t for name, t in tensors.items() if not name.startswith(TOWER)}
    return others | {TOWER + name: tensor for name, tensor in renamed.items()}


def _check_weights(
    spec: ModelSpec,
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
) -> None:
    """Compare all names and shapes with the model's before any weight is loaded.

    Raises:
        CheckpointError: weights are missing, unexpected or of another shape; with the names in the
            file.
    """
    cls: Any = model_class(spec)
    with torch.device("meta"), silence_transformers():
        expected = {name: t.shape for name, t in cls(config).state_dict().items()}
    if not spec.has_standard_projector:  # `replace_projector` checks it
        expected = {n: shape for n, shape in expected.items() if not n.startswith(PROJECTOR)}
        tensors = {n: tensor for n, tensor in tensors.items() if not n.startswith(PROJECTOR)}
    missing = expected.keys() - tensors.keys()
    if config.tie_word_embeddings:
        missing -= {HEAD}
    unexpected = tensors.keys() - expected.keys()
    where, file_names = checkpoint.folders[0], checkpoint.file_names

    def in_file(names: set[str]) -> str:
        return format_names(file_names.get(name, name) for name in names) or "none"

    if missing or unexpected:
        raise CheckpointError(
            f"{where}: weights missing: {in_file(missing)}; unexpected: {in_file(unexpected)}"
        )
    wrong = [
        f"{file_names.get(name, name)} is {tuple(tensor.shape)}, expected {tuple(expected[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != expected[name]
    ]
    if wrong:
        raise CheckpointError(f"{where}: weights of another shape: {format_names(wrong)}")
