"""The one door to models: a name or a folder of any layout in, a model and its processor out.

`load_model` is what everything else calls. `load_weights` is the half without tokenizer and image
settings, for folders that have none. The models are transformers' own classes; nothing of a
checkpoint is ever executed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.building import build
from vip_llava.models.checkpoints import Source, open_checkpoint
from vip_llava.models.fp16_linear import can_halve, halve
from vip_llava.models.hub import DEFAULT_NAME, Progress
from vip_llava.models.placement import Placement
from vip_llava.models.processor_loading import build_processor
from vip_llava.models.quantize import quantize_model
from vip_llava.models.truncate_layers import guard_placeholder
from vip_llava.prompting.geometry import aspect_mode
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template

__all__ = ["load_model", "load_weights"]


def load_model(
    name_or_folder: str | Path | None = None,
    *,
    base: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: str | int | None = None,
    merge_adapter: bool = True,
    template: str | None = None,
    image_aspect_ratio: str | None = None,
    progress: Progress | None = None,
    vision_tower: str | Path | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, Processor]:
    """Open a model and the processor that feeds it.

    Args:
        name_or_folder: None or "default" for the model that comes with this package; a folder, or
            a hub id, in the Hugging Face layout or the original's (whole, projector only, LoRA).
        base: the model that a projector or LoRA folder belongs to.
        dtype: "auto" (float32 on a CPU, bfloat16 elsewhere), a name, or a torch dtype. On a CPU
            "auto" gives the default model float16 weights in float32 arithmetic (`model.half`).
        device: where to put it; the best one by default. Or `device_map` as transformers takes it.
        quantization: "8bit" or "4bit" for the language model's weights.
        merge_adapter: fold a LoRA into the weights; False keeps it as a peft adapter.
        template: conversation template instead of the one that the checkpoint implies.
        image_aspect_ratio: "pad", "square" (crop) or "resize" instead of the checkpoint's.
        progress: called as `progress(stage, done, total)`.
        vision_tower: folder or hub id of the image encoder, where a checkpoint has none inside.
        revision: of a hub id; all its files come from that one commit.

    Raises:
        CheckpointError: the folder can't be loaded as it is; says which file, key or setting.
        QuantizationError: this quantization can't be done here.
        DownloadError: a part could not be fetched.
    """
    placement = Placement.of(dtype, device, device_map, quantization)
    if name_or_folder is None or str(name_or_folder) == DEFAULT_NAME:
        _refuse_for_default(base=base, vision_tower=vision_tower, revision=revision)
        half = dtype == "auto" and quantization is None and can_halve(placement.device)
        return _load_default(placement, half, template, image_aspect_ratio, progress)
    source = Source.named(name_or_folder, base, vision_tower, revision, progress)
    checkpoint = open_checkpoint(source)
    processor = build_processor(checkpoint, template, image_aspect_ratio)
    model = build(checkpoint, placement, merge_adapter, progress)
    if processor.image_token_id != checkpoint.blueprint.image_token_id:
        guard_placeholder(model, processor.image_token_id)
    return model, processor


def load_weights(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: str | int | None = None,
    merge_adapter: bool = True,
    progress: Progress | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """The model alone, as `load_model` builds it; the folder needs no tokenizer.

    `model.config.image_token_id` marks image tokens in `input_ids`, `model.config.image_seq_length`
    of them an image.
    """
    placement = Placement.of(dtype, device, device_map, quantization)
    source = Source.named(folder, base, vision_tower, revision, progress)
    return build(open_checkpoint(source), placement, merge_adapter, progress)


def _refuse_for_default(**given: object) -> None:
    """CheckpointError where something is given that the default model would leave out in silence."""
    for name, value in given.items():
        if value is not None:
            raise CheckpointError(
                f"{name} {str(value)!r}: the default model is whole and takes none; name the model "
                "that it belongs to as well (command line: --model)"
            )


def _load_default(
    placement: Placement,
    half: bool,
    template: str | None,
    aspect: str | None,
    progress: Progress | None,
) -> tuple[PreTrainedModel, Processor]:
    if placement.device_map is not None:
        raise CheckpointError(
            "the default model is small: give device= instead of device_map= "
            "(command line: --device, --device-map)"
        )
    from vip_llava.models.default.build import load_default

    model, processor = load_default(
        dtype=placement.dtype, device=placement.device, progress=progress
    )
    if placement.quantization is not None:
        quantize_model(model, placement.quantization)
    if half:
        halve(model)
    if template is not None:
        processor.template = get_template(template)
    if aspect is not None:
        processor.geometry = replace(processor.geometry, mode=aspect_mode(aspect))
    return model, processor
