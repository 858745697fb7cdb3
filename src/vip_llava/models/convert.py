"""Converts checkpoints between the Hugging Face layout and the original's.

Every weight keeps its bits. What one layout cannot say is written under the key `vip_llava` of the
configuration, so that converting back gives the same weights. The result appears under its name
only when it is complete.
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
from vip_llava.models.checkpoints import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    CheckpointSource,
    extend_head,
    open_checkpoint,
)
from vip_llava.models.hub import DEFAULT_NAME, Progress
from vip_llava.models.layouts import (
    canonical_to_hub,
    canonical_to_original,
    projector_style,
)
from vip_llava.models.processor_loading import (
    IMAGE_PROCESSOR_FILE,
    PROCESSOR_FILE,
    TOKENIZER_FILES,
    first_folder_with,
)
from vip_llava.models.spec import FIVE_LAYERS, METADATA_KEY, ModelSpec, transformers_config
from vip_llava.models.truncate_layers import hidden_state_indices

__all__ = ["convert", "require_original_layout"]

IMAGE_TEXT = "<image>"
_TOKENIZER_EXTRAS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
_COPIED = ("generation_config.json", IMAGE_PROCESSOR_FILE, PROCESSOR_FILE)
_IMAGE_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
    "do_convert_rgb": True, "resample": 3, "rescale_factor": 1 / 255,
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
            `base`. A LoRA folder has to be merged first.
        target: a folder that does not exist yet, or an empty one.
        vision_tower: folder or hub id of the vision tower, if the source has none inside.
        revision: branch, tag or commit of a hub id.
        max_shard_bytes: most bytes of a weight file.

    Raises:
        CheckpointError: the source cannot be read, the target exists, or the layout cannot express
            this model.
    """
    target = Path(target)
    if str(source) == DEFAULT_NAME and not Path(source).is_dir():
        raise CheckpointError(
            "the default model has no other layout: the original has no such vision tower; name a "
            "folder or a hub id like owner/model"
        )
    if to not in ("hf", "original"):
        raise CheckpointError(f"unknown layout {to!r}; expected 'hf' or 'original'")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists; give a new or empty folder")
    report = progress or (lambda stage, done, total: None)
    checkpoint = open_checkpoint(
        CheckpointSource.from_names(source, base, vision_tower, revision, progress)
    )
    if checkpoint.adapter is not None:
        raise CheckpointError(
            f"{source} contains a LoRA adapter: merge it first, by load_weights and save_pretrained "
            "or by `vip-llava convert`"
        )
    tensors, config = _hub_weights(checkpoint) if to == "hf" else _original_weights(checkpoint)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        report("writing weights", 0, 1)
        write_tensors(partial, tensors, max_shard_bytes)
        _write_json(partial / "config.json", config)
        _copy_settings(checkpoint, partial)
        if to == "hf":
            _write_hub_settings(checkpoint, partial)
        else:
            _write_json(partial / "vision_config.json", checkpoint.spec.vision)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    report("writing weights", 1, 1)
    return target


def _hub_weights(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and configuration for transformers, which needs an embedding of `<image>`."""
    spec, tensors = checkpoint.spec, dict(checkpoint.tensors)
    rows = tensors[EMBEDDING].shape[0]
    metadata = dict(spec.metadata)
    new = spec.image_token_id + 1 - rows
    if new > 0:
        metadata["vocab_size"] = rows
        embedding = tensors[EMBEDDING]
        tensors[EMBEDDING] = torch.cat([embedding, embedding.new_zeros(new, embedding.shape[1])])
        if HEAD in tensors:
            tensors[HEAD] = extend_head(tensors[HEAD], new)
    text = {**spec.text, "vocab_size": tensors[EMBEDDING].shape[0]}
    config = transformers_config(replace(spec, text=text, metadata=metadata))
    name = "VipLlava" if spec.is_vip_llava else "Llava"
    config.architectures = [f"{name}ForConditionalGeneration"]
    config.dtype = tensors[EMBEDDING].dtype
    written: dict[str, Any] = json.loads(config.to_json_string())
    prefix = spec.tower.file_prefix
    return {canonical_to_hub(n, prefix): t for n, t in tensors.items()}, written


def _original_weights(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and configuration for the original, which needs no embedding of `<image>`."""
    spec, tensors = checkpoint.spec, dict(checkpoint.tensors)
    require_original_layout(spec)
    vocabulary = spec.metadata.get("vocab_size")
    metadata: dict[str, Any] = {
        key: spec.metadata[key] for key in ("template",) if key in spec.metadata
    }
    if isinstance(vocabulary, int) and vocabulary < tensors[EMBEDDING].shape[0]:
        for name in (EMBEDDING, HEAD):
            if name in tensors:
                tensors[name] = tensors[name][:vocabulary].clone()
    elif spec.image_token_id < tensors[EMBEDDING].shape[0]:
        metadata["image_token_index"] = spec.image_token_id
    if not isinstance(spec.feature_layers, int) and not _reads_five_layers(spec):
        # In a truncated tower the original's negative indices would mean other states.
        metadata["feature_layers"] = list(spec.feature_layers)
    style = projector_style(tensors, spec.metadata.get("mm_projector_type"))
    backbone = str(spec.text["model_type"])
    single = isinstance(spec.feature_layers, int)
    width = int(spec.vision["hidden_size"])
    named = "openai/clip-vit-large-patch14-336" if single else "clip_4layers_336"
    config = {
        **_flat_text(spec.text),
        "model_type": f"llava_{backbone}",
        "architectures": [f"Llava{backbone.capitalize()}ForCausalLM"],
        "vocab_size": tensors[EMBEDDING].shape[0],
        "torch_dtype": str(tensors[EMBEDDING].dtype).removeprefix("torch."),
        "mm_vision_tower": spec.metadata.get("mm_vision_tower") or named,
        "mm_hidden_size": width if single else width * len(FIVE_LAYERS),
        "mm_projector_type": style.type_name,
        "mm_vision_select_layer": spec.feature_layers if single else -2,
        "mm_vision_select_feature": "patch" if spec.drop_class_token else "cls_patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": bool(spec.metadata.get("use_start_end", False)),
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": spec.metadata.get("image_aspect_ratio", "pad"),
        "use_mm_proj": True,
        **({METADATA_KEY: metadata} if metadata else {}),
    }
    return {canonical_to_original(n, style): t for n, t in tensors.items()}, config


def require_original_layout(spec: ModelSpec) -> None:
    """Check that the original's layout can express this model.

    Raises:
        CheckpointError: feature layers, a norm or a tower that the original does not have.
    """
    if spec.tower.model_type != "clip_vision_model":
        raise CheckpointError(
            f"the original's layout has CLIP towers only, not {spec.vision['model_type']!r}"
        )
    layers = spec.feature_layers
    if isinstance(layers, int):
        if spec.projector.norm:
            raise CheckpointError("the original has no projector with a norm on a single layer")
        return
    states = hidden_state_indices(layers, spec.tower.num_hidden_layers(spec.vision))
    if not _reads_five_layers(spec) and states != _five_states(states[0] + 1):
        raise CheckpointError(
            f"the original reads hidden states {FIVE_LAYERS} and no others; this model reads "
            f"{layers}"
        )


def _reads_five_layers(spec: ModelSpec) -> bool:
    """Whether the feature layers are the original's in a tower of this depth."""
    assert not isinstance(spec.feature_layers, int)
    depth = spec.tower.num_hidden_layers(spec.vision)
    return hidden_state_indices(spec.feature_layers, depth) == _five_states(depth)


def _five_states(depth: int) -> tuple[int, ...] | None:
    """The original's five hidden states in a tower of `depth` layers; None in a shallow one."""
    try:
        return hidden_state_indices(FIVE_LAYERS, depth)
    except CheckpointError:
        return None


def _flat_text(text: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's settings, with the rotary ones under the names of older libraries."""
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


def _copy_settings(checkpoint: Checkpoint, target: Path) -> None:
    """Copy tokenizer and image settings, each from the first folder that has them."""
    home = first_folder_with(checkpoint.folders, *TOKENIZER_FILES)
    for name in (*TOKENIZER_FILES, *_TOKENIZER_EXTRAS):
        if home is not None and (home / name).is_file():
            shutil.copyfile(home / name, target / name)
    for name in _COPIED:
        folder = first_folder_with(checkpoint.folders, name)
        # A tower's own file may describe another task at another size.
        if folder is not None and folder != checkpoint.tower_folder:
            shutil.copyfile(folder / name, target / name)


def _write_hub_settings(checkpoint: Checkpoint, target: Path) -> None:
    """Write the settings of transformers' processor, and `<image>` into the tokenizer."""
    spec, size = checkpoint.spec, checkpoint.spec.image_size
    image = target / IMAGE_PROCESSOR_FILE
    if not image.is_file():
        square = {"crop_size": {"height": size, "width": size}, "size": {"shortest_edge": size}}
        colors = {"image_mean": spec.tower.image_mean, "image_std": spec.tower.image_std}
        _write_json(image, {**_IMAGE_PROCESSOR, **colors, **square})
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TEXT,
        "patch_size": spec.vision.get("patch_size"),
        "num_additional_image_tokens": spec.tower.prefix_tokens,
        "vision_feature_select_strategy": "default" if spec.drop_class_token else "full",
    }
    _write_json(target / "processor_config.json", processor)
    _add_image_token(target, spec.image_token_id)


def _add_image_token(target: Path, token_id: int) -> None:
    """Add `<image>` to the tokenizer files that do not have it."""
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
