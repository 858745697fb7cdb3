"""Builds the `Processor` of an opened checkpoint: tokenizer, image geometry, template.

It reads the files beside the weights, and never the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vip_llava.errors import CheckpointError
from vip_llava.models.backbones import backbone_template
from vip_llava.models.checkpoint_files import read_json
from vip_llava.models.checkpoints import EMBEDDING, Checkpoint
from vip_llava.prompting.geometry import ImageGeometry, aspect_mode
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.tokenizers import TextTokenizer, open_tokenizer

__all__ = [
    "IMAGE_PROCESSOR_FILE",
    "PROCESSOR_FILE",
    "TOKENIZER_FILES",
    "build_processor",
    "default_template",
    "first_folder_with",
    "override_processor",
    "special_token_ids",
]

PROCESSOR_FILE = "vip_llava_processor.json"
"""`Processor.to_config()`, in folders that this package wrote."""

IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
"""Settings of transformers' image processor."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def first_folder_with(folders: Iterable[Path], *names: str) -> Path | None:
    """The first folder that has one of these files."""
    return next((f for f in folders if any((f / name).is_file() for name in names)), None)


def build_processor(
    checkpoint: Checkpoint, template: str | None = None, image_aspect_ratio: str | None = None
) -> Processor:
    """The processor of a checkpoint; a template and aspect ratio replace the checkpoint's.

    Raises:
        CheckpointError: there is no tokenizer, or image settings contradict the vision tower.
        TemplateError: there is no template of that name.
    """
    spec = checkpoint.spec
    home = first_folder_with(checkpoint.folders, *TOKENIZER_FILES)
    if home is None:
        searched = ", ".join(str(folder) for folder in checkpoint.folders)
        raise CheckpointError(f"no tokenizer ({' or '.join(TOKENIZER_FILES)}) in {searched}")
    prefer_json = checkpoint.layout == "hub"
    tokenizer = open_tokenizer(home, prefer="json" if prefer_json else "sentencepiece")
    written = first_folder_with(checkpoint.folders, PROCESSOR_FILE)
    if written is not None:
        processor = Processor.from_config(read_json(written / PROCESSOR_FILE), tokenizer)
        if processor.tokens_per_view != spec.tokens_per_view:
            raise CheckpointError(
                f"{written / PROCESSOR_FILE}: tokens_per_view is {processor.tokens_per_view}, but "
                f"the vision tower has {spec.tokens_per_view}"
            )
    else:
        processor = Processor(
            tokenizer,
            _geometry(checkpoint),
            get_template(template or default_template(checkpoint)),
            image_token_id=spec.image_token_id,
            tokens_per_view=spec.tokens_per_view,
            use_start_end=bool(spec.metadata.get("use_start_end", False)),
        )
    override_processor(processor, template, image_aspect_ratio)
    _resolve_id_conflicts(processor, tokenizer, checkpoint)
    return processor


def override_processor(
    processor: Processor, template: str | None, image_aspect_ratio: str | None
) -> None:
    """Set the caller's template and aspect ratio; None keeps the processor's."""
    if template is not None:
        processor.template = get_template(template)
    if image_aspect_ratio is not None:
        mode = aspect_mode(image_aspect_ratio)
        processor.geometry = replace(processor.geometry, mode=mode)


def _resolve_id_conflicts(
    processor: Processor, tokenizer: TextTokenizer, checkpoint: Checkpoint
) -> None:
    """Keep the padding id inside the embedding table, and the image token id unique.

    Llama-3 checkpoints of the original have a `<pad>` just past the table, where the image token
    id would be.
    """
    rows = checkpoint.tensors[EMBEDDING].shape[0]
    if tokenizer.pad_id is not None and tokenizer.pad_id >= rows:
        tokenizer.pad_id = None
    taken = {token.id for text, token in tokenizer.controls.items() if text != "<image>"}
    if processor.image_token_id in taken:
        processor.image_token_id = max(rows, 1 + max(taken))


def _geometry(checkpoint: Checkpoint) -> ImageGeometry:
    """The image geometry in `preprocessor_config.json` and the checkpoint's own mode.

    Hugging Face folders crop by default, but the models were trained with padding, and cropping
    would cut a mark near the edge of a wide image off: padding is the default here.
    """
    spec = checkpoint.spec
    home = first_folder_with(checkpoint.folders, IMAGE_PROCESSOR_FILE)
    config = read_json(home / IMAGE_PROCESSOR_FILE) if home is not None else {}
    if home is None or home == checkpoint.tower_folder:
        # A tower's own file may describe another task, such as classification at another size.
        config = {
            "image_mean": config.get("image_mean", spec.tower.image_mean),
            "image_std": config.get("image_std", spec.tower.image_std),
            "resample": config.get("resample", "bicubic"),
            "size": spec.image_size,
            "crop_size": spec.image_size,
        }
    default = aspect_mode(spec.metadata.get("image_aspect_ratio", "pad"))
    geometry = ImageGeometry.from_config(config, default=default)
    if geometry.size != spec.image_size:
        raise CheckpointError(
            f"{home}/{IMAGE_PROCESSOR_FILE}: images of {geometry.size} pixels, but the vision "
            f"tower reads {spec.image_size}"
        )
    return geometry


def default_template(checkpoint: Checkpoint) -> str:
    """The template that a checkpoint was trained with, by its metadata or its language model."""
    named = checkpoint.spec.metadata.get("template")
    if isinstance(named, str):
        return named
    return "plain" if checkpoint.layout == "projector" else backbone_template(checkpoint.spec.text)


def special_token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """Begin, end and padding ids of the folder's generation settings, or the language model's."""
    home = first_folder_with(checkpoint.folders, "generation_config.json")
    found: dict[str, Any] = read_json(home / "generation_config.json") if home is not None else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    values = {name: found.get(name, checkpoint.spec.text.get(name)) for name in names}
    return {name: value for name, value in values.items() if value is not None}
