"""What a checkpoint folder says beside its weights: tokenizer, image geometry, template.

Builds the `Processor` that belongs to an opened checkpoint. It never looks at weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_json
from vip_llava.models.checkpoints import EMBEDDING, Checkpoint
from vip_llava.models.spec import Blueprint
from vip_llava.prompting.geometry import ImageGeometry, aspect_mode
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.tokenizers import TextTokenizer, open_tokenizer

__all__ = ["PROCESSOR_FILE", "build_processor", "template_for", "token_limits"]

PROCESSOR_FILE = "vip_llava_processor.json"
"""`Processor.to_config()`, where this project wrote the folder."""

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
_LLAMA_3_VOCABULARY = 128_000


def first_with(folders: Iterable[Path], *names: str) -> Path | None:
    """The first folder that has one of these files."""
    return next((f for f in folders if any((f / name).is_file() for name in names)), None)


def build_processor(
    checkpoint: Checkpoint, template: str | None = None, image_aspect_ratio: str | None = None
) -> Processor:
    """The processor of a checkpoint, with the caller's template and geometry in their place.

    Raises:
        CheckpointError: no tokenizer, or image settings that contradict the encoder.
        TemplateError: no template of that name.
    """
    blueprint = checkpoint.blueprint
    home = first_with(checkpoint.folders, *_TOKENIZER_FILES)
    if home is None:
        searched = ", ".join(str(folder) for folder in checkpoint.folders)
        raise CheckpointError(
            f"no tokenizer (tokenizer.json or tokenizer.model) in {searched}; put it there"
        )
    prefer_json = checkpoint.kind == "hub"
    tokenizer = open_tokenizer(home, prefer="json" if prefer_json else "sentencepiece")
    written = first_with(checkpoint.folders, PROCESSOR_FILE)
    if written is not None:
        processor = Processor.from_config(read_json(written / PROCESSOR_FILE), tokenizer)
        if processor.tokens_per_view != blueprint.tokens_per_view:
            raise CheckpointError(
                f"{written / PROCESSOR_FILE}: tokens_per_view {processor.tokens_per_view}, but the "
                f"encoder gives {blueprint.tokens_per_view}"
            )
    else:
        processor = Processor(
            tokenizer,
            _geometry(checkpoint),
            get_template(template or template_for(checkpoint)),
            image_token_id=blueprint.image_token_id,
            tokens_per_view=blueprint.tokens_per_view,
            use_start_end=bool(blueprint.notes.get("use_start_end", False)),
        )
    if template is not None:
        processor.template = get_template(template)
    if image_aspect_ratio is not None:
        mode = aspect_mode(image_aspect_ratio)
        processor.geometry = replace(processor.geometry, mode=mode)
    _keep_ids_apart(processor, tokenizer, checkpoint)
    return processor


def _keep_ids_apart(processor: Processor, tokenizer: TextTokenizer, checkpoint: Checkpoint) -> None:
    """Padding must be in the embedding table, and an image's id no other token's.

    Llama-3 checkpoints of the original have a `<pad>` just past the table, where the image's id
    would be.
    """
    rows = checkpoint.tensors[EMBEDDING].shape[0]
    if tokenizer.pad_id is not None and tokenizer.pad_id >= rows:
        tokenizer.pad_id = None
    taken = {token.id for text, token in tokenizer.controls.items() if text != "<image>"}
    if processor.image_token_id in taken:
        processor.image_token_id = max(rows, 1 + max(taken))


def _geometry(checkpoint: Checkpoint) -> ImageGeometry:
    """`preprocessor_config.json` of the first folder that has it, and the checkpoint's own mode.

    Hugging Face folders crop by default, but the models were trained with padding, and a prompt
    drawn near the edge of a wide image would be cut away: padding is the default here.
    """
    blueprint = checkpoint.blueprint
    size = int(blueprint.vision["image_size"])
    home = first_with(checkpoint.folders, "preprocessor_config.json")
    config: dict[str, Any] = {"size": size, "crop_size": size}
    if home is not None:
        config = read_json(home / "preprocessor_config.json")
    default = aspect_mode(blueprint.notes.get("image_aspect_ratio", "pad"))
    geometry = ImageGeometry.from_config(config, default=default)
    if geometry.size != size:
        raise CheckpointError(
            f"{home}/preprocessor_config.json: images of {geometry.size} pixels, but the encoder "
            f"takes {size}"
        )
    return geometry


def template_for(checkpoint: Checkpoint) -> str:
    """The template that a checkpoint was trained with, as its notes or its backbone say."""
    blueprint: Blueprint = checkpoint.blueprint
    noted = blueprint.notes.get("template")
    if isinstance(noted, str):
        return noted
    if checkpoint.kind == "projector":
        return "plain"
    backbone = blueprint.text["model_type"]
    if backbone == "phi3":
        return "llava_phi_3"
    if backbone == "mistral":
        return "mistral_instruct"
    if backbone == "llama" and int(blueprint.text.get("vocab_size", 0)) >= _LLAMA_3_VOCABULARY:
        return "llava_llama_3"
    return "llava_v1"


def token_limits(checkpoint: Checkpoint) -> dict[str, Any]:
    """The token ids of the folder's generation settings, else of the language model's."""
    home = first_with(checkpoint.folders, "generation_config.json")
    found = read_json(home / "generation_config.json") if home is not None else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    text = checkpoint.blueprint.text
    values = {name: found.get(name, text.get(name)) for name in names}
    return {name: value for name, value in values.items() if value is not None}
