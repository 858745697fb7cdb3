"""Writing one layout from another: Hugging Face folders and the original's, both ways.

Every weight keeps its bits. What one layout can't say is noted under the key `vip_llava` in the
configuration, so that the way back gives the same weights again. Files are complete or absent: the
folder gets its name when everything is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_json, write_tensors
from vip_llava.models.checkpoints import EMBEDDING, HEAD, Checkpoint, Source, open_checkpoint
from vip_llava.models.hub import DEFAULT_NAME, Progress
from vip_llava.models.layouts import (
    canonical_to_hub,
    canonical_to_original,
    projector_style,
)
from vip_llava.models.processor_loading import PROCESSOR_FILE, first_with
from vip_llava.models.spec import FIVE_LAYERS, MARK, Blueprint, transformers_config
from vip_llava.models.truncate_layers import used_states

__all__ = ["convert"]

IMAGE_TEXT = "<image>"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_CARRIED = ("generation_config.json", "preprocessor_config.json", PROCESSOR_FILE)
_CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
    "do_convert_rgb": True, "resample": 3, "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip


def convert(
    source: str | Path,
    target: str | Path,
    to: Literal["hf", "original"],
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    revision: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Path:
    """Write the model `source` into the new folder `target` in layout `to`, as safetensors.

    Args:
        source: folder or hub id of a whole model in either layout, or a projector folder with its
            `base`. LoRA folders must be merged and saved first.
        target: a folder that doesn't exist yet, or an empty one.
        vision_tower: where the image encoder is, if the source has none inside.
        revision: branch, tag or commit of a hub id.
        max_shard_bytes: files are split at this size.

    Raises:
        CheckpointError: the source can't be read, the target is taken, or the layout can't hold
            this model (says why).
    """
    target = Path(target)
    if str(source) == DEFAULT_NAME and not Path(source).is_dir():
        raise CheckpointError(
            "the default model has no other layout: its tower is none of the original's; name a "
            "folder or a hub id like owner/model"
        )
    if to not in ("hf", "original"):
        raise CheckpointError(f"unknown layout {to!r}; expected 'hf' or 'original'")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists; give a new or empty folder")
    tell = progress or (lambda stage, done, total: None)
    checkpoint = open_checkpoint(Source.named(source, base, vision_tower, revision, progress))
    if checkpoint.adapter is not None:
        raise CheckpointError(
            f"{source} holds LoRA adapters: load it with merge_adapter=True and save that model first"
        )
    tensors, config = _hub_parts(checkpoint) if to == "hf" else _original_parts(checkpoint)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tell("writing weights", 0, 1)
        write_tensors(partial, tensors, max_shard_bytes)
        _write_json(partial / "config.json", config)
        _carry_over(checkpoint, partial)
        if to == "hf":
            _hub_settings(checkpoint, partial)
        else:
            _write_json(partial / "vision_config.json", checkpoint.blueprint.vision)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    tell("writing weights", 1, 1)
    return target


def _hub_parts(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and configuration for transformers, which looks every id up: `<image>` gets a row."""
    blueprint, tensors = checkpoint.blueprint, dict(checkpoint.tensors)
    rows = tensors[EMBEDDING].shape[0]
    notes = dict(blueprint.notes)
    new = blueprint.image_token_id + 1 - rows
    if new > 0:
        notes["vocab_size"] = rows
        embedding = tensors[EMBEDDING]
        tensors[EMBEDDING] = torch.cat([embedding, embedding.new_zeros(new, embedding.shape[1])])
        if HEAD in tensors:
            # The average row scores the average: it is never the best answer.
            average = tensors[HEAD].float().mean(dim=0, keepdim=True).to(embedding.dtype)
            tensors[HEAD] = torch.cat([tensors[HEAD], average.expand(new, -1)])
    # `vocab_size` would otherwise be that of a table without the row.
    text = {**blueprint.text, "vocab_size": tensors[EMBEDDING].shape[0]}
    config = transformers_config(replace(blueprint, text=text, notes=notes))
    name = "VipLlava" if blueprint.projector.norm else "Llava"
    config.architectures = [f"{name}ForConditionalGeneration"]
    config.dtype = tensors[EMBEDDING].dtype
    written: dict[str, Any] = json.loads(config.to_json_string())
    return {canonical_to_hub(n, blueprint.clip): t for n, t in tensors.items()}, written


def _original_parts(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and configuration for the original, which inserts images and needs no row."""
    blueprint, tensors = checkpoint.blueprint, dict(checkpoint.tensors)
    layers = _original_layers(blueprint)
    noted = blueprint.notes.get("vocab_size")
    mark: dict[str, Any] = {
        key: blueprint.notes[key] for key in ("template",) if key in blueprint.notes
    }
    if isinstance(noted, int) and noted < tensors[EMBEDDING].shape[0]:
        for name in (EMBEDDING, HEAD):
            if name in tensors:
                tensors[name] = tensors[name][:noted].clone()
    elif blueprint.image_token_id < tensors[EMBEDDING].shape[0]:
        mark["image_token_index"] = blueprint.image_token_id
    if layers is None:
        # A shortened encoder: the usual indices would count from its end.
        assert isinstance(blueprint.feature_layers, tuple)
        mark["feature_layers"] = list(blueprint.feature_layers)
    style = projector_style(tensors, blueprint.notes.get("mm_projector_type"))
    backbone = str(blueprint.text["model_type"])
    class_name = {"phi3": "LlavaPhi3", "llama": "LlavaLlama"}.get(
        backbone, f"Llava{backbone.capitalize()}"
    )
    single = isinstance(blueprint.feature_layers, int)
    width = int(blueprint.vision["hidden_size"])
    named = "openai/clip-vit-large-patch14-336" if single else "clip_4layers_336"
    config = {
        **_flat_text(blueprint.text),
        "model_type": f"llava_{backbone}",
        "architectures": [f"{class_name}ForCausalLM"],
        "vocab_size": tensors[EMBEDDING].shape[0],
        "torch_dtype": str(tensors[EMBEDDING].dtype).removeprefix("torch."),
        "mm_vision_tower": blueprint.notes.get("mm_vision_tower") or named,
        "mm_hidden_size": width if single else width * len(FIVE_LAYERS),
        "mm_projector_type": style.type_name,
        "mm_vision_select_layer": blueprint.feature_layers if single else -2,
        "mm_vision_select_feature": "cls_patch" if blueprint.keep_class else "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": bool(blueprint.notes.get("use_start_end", False)),
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": blueprint.notes.get("image_aspect_ratio", "pad"),
        "use_mm_proj": True,
        **({MARK: mark} if mark else {}),
    }
    return {canonical_to_original(n, style): t for n, t in tensors.items()}, config


def _original_layers(blueprint: Blueprint) -> tuple[int, ...] | int | None:
    """The feature layers as the original knows them; None for the same ones of a shortened encoder.

    Raises:
        CheckpointError: layers, a norm or an encoder that the original doesn't have.
    """
    if not blueprint.clip:
        raise CheckpointError(
            f"the original's layout has CLIP encoders only, not {blueprint.vision['model_type']!r}"
        )
    layers = blueprint.feature_layers
    if isinstance(layers, int):
        if blueprint.projector.norm:
            raise CheckpointError("the original has no projector with a norm on a single layer")
        return layers
    depth = int(blueprint.vision["num_hidden_layers"])
    states = used_states(layers, depth)
    if states == used_states(FIVE_LAYERS, depth):
        return FIVE_LAYERS
    deepest = states[0]
    if states == used_states(FIVE_LAYERS, deepest + 1):
        return None
    raise CheckpointError(
        f"the original reads hidden states {FIVE_LAYERS} and no others; this model reads {layers}"
    )


def _flat_text(text: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's settings, rotary ones also by the names of older libraries."""
    flat = {
        key: value for key, value in text.items() if key not in ("dtype", "transformers_version")
    }
    rope = flat.get("rope_parameters")
    if isinstance(rope, Mapping):
        flat.pop("rope_parameters")
        flat["rope_theta"] = rope.get("rope_theta", 10000.0)
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        flat["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    return flat


def _carry_over(checkpoint: Checkpoint, target: Path) -> None:
    """Copy tokenizer and image settings, each from the first folder that has them."""
    home = first_with(checkpoint.folders, "tokenizer.json", "tokenizer.model")
    for name in _TOKENIZER_FILES:
        if home is not None and (home / name).is_file():
            shutil.copyfile(home / name, target / name)
    for name in _CARRIED:
        place = first_with(checkpoint.folders, name)
        if place is not None:
            shutil.copyfile(place / name, target / name)


def _hub_settings(checkpoint: Checkpoint, target: Path) -> None:
    """What transformers' processor wants beside the weights, and `<image>` in the tokenizer."""
    blueprint = checkpoint.blueprint
    size = int(blueprint.vision["image_size"])
    image = target / "preprocessor_config.json"
    if not image.is_file():
        square = {"crop_size": {"height": size, "width": size}, "size": {"shortest_edge": size}}
        _write_json(image, {**_CLIP_PROCESSOR, **square})
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TEXT,
        "patch_size": int(blueprint.vision["patch_size"]),
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "full" if blueprint.keep_class else "default",
    }
    _write_json(target / "processor_config.json", processor)
    _add_image_token(target, blueprint.image_token_id)


def _add_image_token(target: Path, token_id: int) -> None:
    """Name the image's id in the tokenizer files, where it is not named yet."""
    token = {
        "content": IMAGE_TEXT, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    whole = target / "tokenizer.json"
    if whole.is_file():
        content = read_json(whole)
        added = content.setdefault("added_tokens", [])
        if not any(entry.get("content") == IMAGE_TEXT for entry in added):
            added.append({"id": token_id, **token})
            whole.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        content = read_json(settings)
        decoder = content.setdefault("added_tokens_decoder", {})
        known = any(entry.get("content") == IMAGE_TEXT for entry in decoder.values())
        if not known and not whole.is_file():
            decoder[str(token_id)] = token
            _write_json(settings, content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
