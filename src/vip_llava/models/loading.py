"""Loads a model and its processor from a name or a folder of any layout.

`load_model` is the entry point. `load_weights` loads the model alone, for folders without tokenizer
and image settings. The models are transformers' own classes; no code of a checkpoint runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vip_llava.errors import CheckpointError
from vip_llava.models.building import build_model
from vip_llava.models.checkpoints import CheckpointSource, open_checkpoint
from vip_llava.models.fp16_linear import replace_linears, supports_fp16_linear
from vip_llava.models.hub import DEFAULT_NAME, Progress
from vip_llava.models.image_token import allow_image_token
from vip_llava.models.placement import Placement
from vip_llava.models.processor_loading import build_processor, override_processor
from vip_llava.models.quantize import quantize_model
from vip_llava.prompting.processor import Processor

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
    """Load a model and its processor.

    Args:
        name_or_folder: None or "default" for the model that comes with this package; a folder, or
            a hub id, in the Hugging Face layout or the original's (whole, projector only, LoRA).
        base: the model that a projector or LoRA folder belongs to.
        dtype: "auto" (float32 on a CPU, bfloat16 elsewhere), a name, or a torch dtype. On a CPU
            "auto" gives the default model float16 weights with float32 arithmetic
            (`fp16_linear.py`).
        device: CUDA, Apple's GPU or the CPU by default, in this order.
        device_map: as for transformers, instead of `device`.
        quantization: "8bit" or "4bit" for the language model's weights.
        merge_adapter: merge a LoRA adapter into the weights; False keeps peft's layers.
        template: conversation template instead of the checkpoint's.
        image_aspect_ratio: "pad", "square" (crop) or "resize" instead of the checkpoint's.
        progress: called as `progress(stage, done, total)`.
        vision_tower: folder or hub id of the vision tower, where a checkpoint has none inside.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: the folder cannot be loaded; names the file, key or setting.
        QuantizationError: this quantization is not possible here.
        DownloadError: a file could not be downloaded.
    """
    placement = Placement.resolve(dtype, device, device_map, quantization)
    if name_or_folder is None or str(name_or_folder) == DEFAULT_NAME:
        _refuse_for_default(base=base, vision_tower=vision_tower, revision=revision)
        fp16 = dtype == "auto" and quantization is None and supports_fp16_linear(placement.device)
        model, processor = _load_default(placement, fp16, progress)
        override_processor(processor, template, image_aspect_ratio)
        return model, processor
    checkpoint = open_checkpoint(
        CheckpointSource.from_names(name_or_folder, base, vision_tower, revision, progress)
    )
    processor = build_processor(checkpoint, template, image_aspect_ratio)
    model = build_model(checkpoint, placement, merge_adapter, progress)
    if processor.image_token_id != checkpoint.spec.image_token_id:
        allow_image_token(model, processor.image_token_id)
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
    """Load the model alone; arguments and errors are those of `load_model`.

    `model.config.image_token_id` marks image tokens in `input_ids`, and an image takes
    `model.config.image_seq_length` of them. The folder needs no tokenizer.
    """
    placement = Placement.resolve(dtype, device, device_map, quantization)
    source = CheckpointSource.from_names(folder, base, vision_tower, revision, progress)
    return build_model(open_checkpoint(source), placement, merge_adapter, progress)


def _refuse_for_default(**given: object) -> None:
    """Raise CheckpointError for an argument that the default model would ignore."""
    for name, value in given.items():
        if value is not None:
            raise CheckpointError(
                f"{name} {str(value)!r}: the default model takes none; name the model that it "
                "belongs to as well (command line: --model)"
            )


def _load_default(
    placement: Placement, fp16: bool, progress: Progress | None
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
    if fp16:
        replace_linears(model)
    return model, processor
