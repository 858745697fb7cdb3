"""The dry-run plan of a recipe: trainable parameters, steps and memory, without any weights.

Models are built on the "meta" device from configurations: the local one if the initial model is a
folder, else the published configuration that matches its name. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from vip_llava.data.reading import RowFile
from vip_llava.errors import CheckpointError, DataError
from vip_llava.models.building import model_class, silence_transformers
from vip_llava.models.checkpoint_files import read_json
from vip_llava.models.layouts import ProjectorStyle
from vip_llava.models.spec import (
    FIVE_LAYERS,
    ModelSpec,
    is_hub_config,
    spec_from_hub,
    transformers_config,
)
from vip_llava.models.truncate_layers import truncate_layers
from vip_llava.models.vision_towers import get_vision_tower, published_tower, tower_config
from vip_llava.training.recipes.recipe import Recipe

__all__ = ["build_meta_model", "count_rows", "count_steps", "estimate_memory", "make_plan"]

TYPICAL_TEXT_TOKENS = 256
"""Text tokens of a typical image row of the published mixtures."""

Config = dict[str, Any]


def _llama(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int) -> Config:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


# A part of a hub id -> the published configuration of its language model.
_PUBLISHED: dict[str, Config] = {
    "llama-3-8b": _llama(128256, 4096, 14336, 32, 32, 8),
    "phi-3-mini": {**_llama(32064, 3072, 8192, 32, 32, 32), "model_type": "phi3"},
    "13b": _llama(32000, 5120, 13824, 40, 40, 40),
    "7b": _llama(32000, 4096, 11008, 32, 32, 32),
}


def make_plan(recipe: Recipe, world_size: int = 1) -> dict[str, Any]:
    """The plan of a run on `world_size` devices, as JSON values.

    Raises:
        DataError: `batch.size` can't be divided among the devices, or a row file is broken.
        CheckpointError: the initial model's configuration is neither local nor published.
    """
    try:
        per_device, accumulation = recipe.accumulation(world_size)
    except ValueError as error:
        raise DataError(str(error)) from None
    model = build_meta_model(recipe)
    rows, missing = count_rows(recipe)
    return {
        "recipe": recipe.resolved(),
        "devices": world_size,
        "batch": {
            "rows per step": recipe.batch.size,
            "rows per device": per_device,
            "accumulation steps": accumulation,
        },
        "rows": rows,
        "steps": count_steps(recipe, rows),
        "missing files": missing,
        "trainable": count_trainable(model, recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory per device (GB, estimated)": estimate_memory(recipe, model, world_size, per_device),
    }


def count_rows(recipe: Recipe) -> tuple[int | None, list[str]]:
    """The number of rows (`data.rows` if files are missing), and the missing files.

    Raises DataError for a file that is not a row file.
    """
    total, missing = 0, []
    for name in recipe.data.files:
        path = Path(recipe.data.root).expanduser() / name
        if path.exists():
            total += len(RowFile.open(path))
        else:
            missing.append(str(path))
    return (recipe.data.rows if missing else total), missing


def count_steps(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps of the run; None for an unknown number of rows."""
    if recipe.steps is not None:
        return recipe.steps
    if rows is None:
        return None
    per_epoch = max(-(-rows // recipe.batch.size), 1)
    return max(round(per_epoch * recipe.epochs), 1)


def build_meta_model(recipe: Recipe) -> PreTrainedModel:
    """The model of the run on the meta device, with nothing frozen."""
    spec = truncate_layers(_spec(recipe))
    cls: Any = model_class(spec)
    with torch.device("meta"), no_init_weights(), silence_transformers():
        model: PreTrainedModel = cls(transformers_config(spec))
    return model


def _spec(recipe: Recipe) -> ModelSpec:
    config = recipe.model
    if config.tiny is not None:
        tiny = config.tiny
        text = _llama(
            tiny.vocabulary, tiny.width, 4 * tiny.width, tiny.layers, tiny.heads, tiny.heads
        )
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": tiny.width,
            "intermediate_size": 2 * tiny.width,
            "num_hidden_layers": tiny.tower_layers,
            "num_attention_heads": tiny.heads,
            "image_size": tiny.image,
            "patch_size": tiny.patch,
        }
        return _make_spec(text, vision, config.features)
    local = _local_config(config.name)
    vision = _tower_config(config.tower)
    if config.start is None or local is None:
        return _make_spec(_text_config(config.name, local), vision, config.features)
    if is_hub_config(local):
        # spec_from_hub reads the projector's form off the names of its weights.
        norm = local["model_type"] == "vipllava"
        names = ["linear_1.weight", "linear_2.weight"]
        names += ["projector_layernorm.weight"] if norm else []
        empty = torch.empty(0)
        return spec_from_hub(local, {f"model.multi_modal_projector.{n}": empty for n in names})
    one = local.get("mm_hidden_size") == vision["hidden_size"]
    return _make_spec(_text_config(config.name, local), vision, -2 if one else FIVE_LAYERS)


def _local_config(name: str) -> Config | None:
    folder = Path(name).expanduser()
    return read_json(folder / "config.json") if folder.is_dir() else None


def _text_config(name: str, config: Config | None) -> Config:
    """The language model's configuration, from its folder or the published one of its name."""
    if config is not None:
        keys = ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]
        keys += ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
        kind = "phi3" if "phi3" in str(config.get("model_type")) else "llama"
        return {"model_type": kind, **{key: config[key] for key in keys if key in config}}
    lowered = name.lower()
    for part, published in _PUBLISHED.items():
        if part in lowered:
            return published
    raise CheckpointError(
        f"a plan needs the configuration of {name!r}: it is not a folder, and its name contains "
        f"none of {', '.join(_PUBLISHED)}"
    )


def _tower_config(name: str | None) -> Config:
    local = _local_config(name) if name is not None else None
    if local is not None:
        return tower_config(local)
    published = published_tower(name or "openai/clip-vit-large-patch14-336")
    if published is None:
        raise CheckpointError(
            f"a plan needs the configuration of the vision tower {name!r}: it is neither a folder "
            "nor a published tower"
        )
    return published


def _make_spec(text: Config, vision: Config, features: tuple[int, ...] | int) -> ModelSpec:
    return ModelSpec(
        text=text,
        vision=vision,
        feature_layers=features,
        drop_class_token=get_vision_tower(vision["model_type"]).prefix_tokens > 0,
        projector=ProjectorStyle(2, not isinstance(features, int)),
        image_token_id=int(text["vocab_size"]),
    )


def count_trainable(model: PreTrainedModel, recipe: Recipe) -> dict[str, int]:
    """The number of trainable parameters of each part and of the adapter."""
    modules = {
        "projector": "model.multi_modal_projector",
        "language": "model.language_model",
        "tower": "model.vision_tower",
    }
    counts: dict[str, int] = {
        part: sum(p.numel() for p in model.get_submodule(modules[part]).parameters())
        for part in recipe.train.parts
    }
    if "language" in counts:
        owner: Any = model
        head = owner.get_output_embeddings().weight
        tied = head is owner.get_input_embeddings().weight
        counts["language"] += 0 if tied else head.numel()
    if recipe.train.adapter is not None:
        rank = recipe.train.adapter.rank
        body = model.get_submodule("model.language_model")
        layers = [m for m in body.modules() if isinstance(m, torch.nn.Linear)]
        counts["adapter"] = sum(rank * (m.in_features + m.out_features) for m in layers)
    return counts


def estimate_memory(
    recipe: Recipe, model: PreTrainedModel, world_size: int, rows: int
) -> dict[str, float]:
    """An estimate of the memory of one device in GB (10^9 bytes), by purpose.

    Weights, gradients and AdamW's state are exact. Activations are estimated for `rows` rows of
    256 text tokens and one image; workspace of kernels and the allocator is not included.
    """
    trainable_bytes = 4 if "float32" in (recipe.train.weights, recipe.precision) else 2
    frozen_bytes = 4 if recipe.precision == "float32" else 2
    counts = count_trainable(model, recipe)
    adapter = counts.pop("adapter", 0)
    trainable = sum(counts.values())
    frozen = float((sum(p.numel() for p in model.parameters()) - trainable) * frozen_bytes)
    if recipe.quantized and recipe.train.adapter is not None:
        body = model.get_submodule("model.language_model").modules()
        quantized = sum(m.weight.numel() for m in body if isinstance(m, torch.nn.Linear))
        # 4-bit weights have a scale and an offset for every 32 of them.
        bits = 5.0 if recipe.train.adapter.bits == 4 else 8.0
        frozen -= quantized * (frozen_bytes - bits / 8)
    if adapter and counts.get("projector"):
        frozen += counts["projector"] * frozen_bytes  # peft keeps the initial projector too
    trainable += adapter
    shards_of_state = world_size if recipe.parallel.startswith(("fsdp2", "zero")) else 1
    shards_of_weights = world_size if recipe.sharded else 1
    memory = {
        "weights": (frozen + trainable * trainable_bytes) / shards_of_weights,
        "gradients": trainable * trainable_bytes / shards_of_state,
        "optimizer": 2 * trainable * trainable_bytes / shards_of_state,
        "activations": float(_activation_bytes(recipe, model, rows)),
    }
    if recipe.parallel.endswith("-offload"):
        memory["optimizer"] = 0.0
    memory["total"] = sum(memory.values())
    return {name: round(value / 1e9, 2) for name, value in memory.items()}


def _activation_bytes(recipe: Recipe, model: PreTrainedModel, rows: int) -> int:
    config: Any = model.config
    text: Any = config.text_config
    typical = int(config.image_seq_length)
    if recipe.model.tiny is None:
        typical = min(typical + TYPICAL_TEXT_TOKENS, recipe.data.max_length)
    tokens = rows * typical
    if recipe.data.packing:
        tokens = recipe.data.packed_tokens or recipe.data.max_length * recipe.batch.per_device
    size = 4 if recipe.precision == "float32" else 2
    # A layer keeps about 12 values of the hidden size and 4 of the inner size per token.
    layer = tokens * (12 * text.hidden_size + 4 * text.intermediate_size) * size
    if recipe.activation_checkpointing:
        return int(tokens * text.hidden_size * text.num_hidden_layers * size + layer)
    return int(layer * text.num_hidden_layers)
