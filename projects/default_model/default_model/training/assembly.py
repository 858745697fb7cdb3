"""Assembles a training run of the default model: published weights, photos and a recipe.

The language model and the tower start from their published weights, the projector from random
ones. Photos of the validation split are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, VipLlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from default_model.scenes.mixture import RegionMixture
from default_model.scenes.mixture_config import MixtureConfig
from default_model.scenes.photos import Photo, read_labelled_photos, read_pack, read_regions
from default_model.training.efficientnet_weights import ensure_tower, load_published, read_tower
from default_model.training.param_groups import set_trainable
from default_model.training.recipe import StageRecipe
from default_model.training.trainer import RegionTrainer
from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.models.default.build import (
    FOCAL,
    IMAGE_TOKEN_ID,
    default_config,
    default_processor,
    new_default,
)
from vip_llava.models.default.efficientnet import EfficientNetLiteConfig
from vip_llava.models.default.fetch import Progress
from vip_llava.models.default.language_model import ensure_language_model
from vip_llava.prompting.focal_views import FocalSettings

#: Packs of photos of one object, beside `regions.jsonl`; each may be missing.
PACKS = ("photos/photos.npz", "tiny-imagenet/tiny-imagenet.npz", "imagenet-samples")
# The shape of SmolLM2-135M, for a plan without downloading it.
_LANGUAGE_MODEL: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


@dataclass(frozen=True)
class TrainingPhotos:
    """The training photos of a data folder.

    left_out: number of validation photos. missing: the packs that the folder does not have.
    """

    photos: Sequence[Photo]
    singles: Sequence[Photo]
    left_out: int
    missing: tuple[str, ...]


def read_training_photos(data: Path, limit: int | None = None) -> TrainingPhotos:
    """The photos of a folder with `regions.jsonl` and packs, without the validation split.

    limit: maximum number of photos of each kind. Raises DataError for an invalid row.
    """
    everything = list(read_regions(data))
    photos = [p for p in everything if not is_validation(p.id)]
    singles: list[Photo] = []
    for name in PACKS:
        path = data / name
        if path.exists():
            singles += read_pack(path) if path.suffix == ".npz" else read_labelled_photos(path)
    missing = tuple(name for name in PACKS if not (data / name).exists())
    left_out = len(everything) - len(photos)
    return TrainingPhotos(photos[:limit], singles[:limit], left_out, missing)


def mixture_config(settings: StageRecipe) -> MixtureConfig:
    """The configuration of the mixture with the values of a recipe."""
    own = MixtureConfig()
    rows = {k: max(round(v * settings.rows_scale), 1) for k, v in own.rows.items()}
    low, high = (settings.focal_scale / FOCAL.scale * v for v in own.focal_scale)
    return MixtureConfig(
        shares={str(k): v for k, v in settings.shares.items()},
        rows=rows,
        mosaic_share=settings.mosaic_share,
        single_share=settings.single_share,
        label_power=settings.label_power,
        shape_weights={str(k): v for k, v in settings.shape_weights.items()},
        focal_scale=(low, high),
        augment=replace(own.augment, harsh_share=settings.harsh_share, scale=settings.image_scale),
    )


def focal_settings(settings: StageRecipe) -> FocalSettings:
    """The settings of focal views of a recipe."""
    return replace(
        FOCAL,
        scale=settings.focal_scale,
        minimum=settings.focal_minimum,
        point_share=settings.focal_point_share,
        named=settings.named_views,
        ranked=settings.ranked_views,
        told=settings.told_views,
        fine=settings.fine_marks,
    )


def trained_parameters(settings: StageRecipe) -> dict[str, int]:
    """The number of trained parameters of each part; needs no weights."""
    config = default_config(
        EfficientNetLiteConfig(), LlamaConfig(**_LANGUAGE_MODEL), IMAGE_TOKEN_ID
    )
    with torch.device("meta"), no_init_weights():
        model: Any = VipLlavaForConditionalGeneration(config)
    set_trainable(model, settings)
    inner = model.model
    parts = {
        "tower": inner.vision_tower,
        "projector": inner.multi_modal_projector,
        "language model (LoRA)" if settings.lora_rank else "language model": inner.language_model,
    }
    return {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in parts.items()
    }


def build(
    settings: StageRecipe,
    data: Path | TrainingPhotos,
    tower: Path | None,
    device: str,
    *,
    compiled: bool,
    start: Sequence[Path] = (),
    progress: Progress | None = None,
) -> RegionTrainer:
    """The trainer, with all photos decoded and the model on the device.

    data: a folder, or the result of `read_training_photos`. tower: a file of the published tower
    (`.pth` or safetensors), downloaded if None. start: folders of trained weights to start from; the
    mean of several. Raises DataError, CheckpointError or DownloadError.
    """
    torch.manual_seed(settings.seed)
    read = read_training_photos(data) if isinstance(data, Path) else data
    model, language_model = untrained(tower, progress)
    focal = focal_settings(settings)
    processor = default_processor(language_model, focal)
    mix = RegionMixture(
        read.photos, read.singles, processor, focal, mixture_config(settings), settings.seed
    )
    mix.source.decode_all()
    return RegionTrainer(model, mix, settings, device, compiled=compiled, start=start)


def untrained(tower: Path | None, progress: Progress | None = None) -> tuple[Any, Path]:
    """A VipLlava with published weights and a new projector, and the language model's folder.

    tower: as in `build`. Raises CheckpointError or DownloadError.
    """
    language_model = ensure_language_model(progress=progress)
    model: Any = new_default(language_model)
    published = read_tower(tower if tower is not None else ensure_tower(progress=progress))
    load_published(model.model.vision_tower, published)
    reset_projector(model)
    return model, language_model


def reset_projector(model: Any) -> None:
    """Initialize the projector of a VipLlava with torch's generator."""
    projector = model.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2, projector.projector_layernorm):
        layer.reset_parameters()
