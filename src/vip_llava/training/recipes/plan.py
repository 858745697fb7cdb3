"""What a run would do, worked out without any weights: what learns, how many steps, how much memory.

Models are made without memory ("meta" tensors) from configurations: the local one where the start
is a folder, else the published shape that the name stands for. Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from vip_llava.data.reading import RowFile
from vip_llava.errors import CheckpointError, DataError
from vip_llava.models.building import quiet
from vip_llava.models.checkpoint_files import read_json
from vip_llava.models.layouts import ProjectorStyle
from vip_llava.models.spec import (
    KNOWN_TOWERS,
    Blueprint,
    blueprint_from_hub,
    is_hub_config,
    transformers_config,
)
from vip_llava.models.truncate_layers import stopped
from vip_llava.training.recipes.recipe import Recipe

__all__ = ["count_rows", "make_plan", "memory", "outline"]

#: An image row of the published mixes, 576 of them for the image: what a plan reckons with.
TYPICAL_TOKENS = 832
_CLIP = KNOWN_TOWERS["openai/clip-vit-large-patch14-336"]


def _shape(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int) -> Any:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


#: Part of a name -> the language model's shape, from its published configuration.
_SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": _shape(128256, 4096, 14336, 32, 32, 8),
    "phi-3-mini": {**_shape(32064, 3072, 8192, 32, 32, 32), "model_type": "phi3"},
    "13b": _shape(32000, 5120, 13824, 40, 40, 40),
    "7b": _shape(32000, 4096, 11008, 32, 32, 32),
}


def make_plan(recipe: Recipe, world: int = 1) -> dict[str, Any]:
    """The plan of a run on `world` devices, as JSON values.

    Raises:
        DataError: the global batch can't be kept, or a row file is broken.
        CheckpointError: a start whose shape is not known without fetching it.
    """
    try:
        rows_at_once, rounds = recipe.accumulation(world)
    except ValueError as error:
        raise DataError(str(error)) from None
    model = outline(recipe)
    rows, absent = count_rows(recipe)
    return {
        "recipe": recipe.resolved(),
        "devices": world,
        "batch": {
            "rows a step": recipe.batch.size,
            "rows at once on a device": rows_at_once,
            "rounds a step": rounds,
        },
        "rows": rows,
        "steps": steps(recipe, rows),
        "files that are absent": absent,
        "learns": counts(model, recipe),
        "numbers in the model": sum(p.numel() for p in model.parameters()),
        "memory on each device (GB, estimated)": memory(recipe, model, world, rows_at_once),
    }


def count_rows(recipe: Recipe) -> tuple[int | None, list[str]]:
    """How many rows there are (what the recipe expects where files are absent), and those files.

    Raises DataError for a file that is no row file.
    """
    total, absent = 0, []
    for name in recipe.data.files:
        path = Path(recipe.data.root).expanduser() / name
        if path.exists():
            total += len(RowFile.open(path))
        else:
            absent.append(str(path))
    return (recipe.data.rows if absent else total), absent


def steps(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps of the run; None where the number of rows is not known."""
    if recipe.steps is not None:
        return recipe.steps
    if rows is None:
        return None
    an_epoch = max(-(-rows // recipe.batch.size), 1)
    return max(round(an_epoch * recipe.epochs), 1)


def outline(recipe: Recipe) -> PreTrainedModel:
    """The model of the run without memory, every weight in its place and nothing frozen."""
    from transformers import LlavaForConditionalGeneration, VipLlavaForConditionalGeneration

    config = transformers_config(stopped(_blueprint(recipe)))
    five = config.model_type == "vipllava"
    cls: Any = VipLlavaForConditionalGeneration if five else LlavaForConditionalGeneration
    with torch.device("meta"), no_init_weights(), quiet():
        model: PreTrainedModel = cls(config)
    return model


def _blueprint(recipe: Recipe) -> Blueprint:
    wanted = recipe.model
    if wanted.tiny is not None:
        tiny = wanted.tiny
        text = _shape(
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
        return _put_together(text, vision, wanted.features)
    if wanted.start is not None and Path(wanted.start).expanduser().is_dir():
        config = read_json(Path(wanted.start).expanduser() / "config.json")
        if is_hub_config(config):
            # Only the projector's form is asked of the weights.
            norm = config["model_type"] == "vipllava"
            names = ["linear_1.weight", "linear_2.weight"]
            names += ["projector_layernorm.weight"] if norm else []
            empty = torch.empty(0)
            found = {f"model.multi_modal_projector.{name}": empty for name in names}
            return blueprint_from_hub(config, found)
        one = config.get("mm_hidden_size") == _CLIP["hidden_size"]
        return _put_together(
            _text(wanted.start, config), _vision(wanted.tower), -2 if one else None
        )
    name = wanted.name
    return _put_together(_text(name, _local(name)), _vision(wanted.tower), wanted.features)


def _local(name: str) -> dict[str, Any] | None:
    folder = Path(name).expanduser()
    return read_json(folder / "config.json") if folder.is_dir() else None


def _text(name: str, config: dict[str, Any] | None) -> dict[str, Any]:
    """The language model's shape, from its configuration or from what its name stands for."""
    if config is not None:
        keys = ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]
        keys += ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
        kind = "phi3" if "phi3" in str(config.get("model_type")) else "llama"
        return {"model_type": kind, **{key: config[key] for key in keys if key in config}}
    lowered = name.lower()
    for part, shape in _SHAPES.items():
        if part in lowered:
            return shape
    raise CheckpointError(
        f"a plan can't tell the shape of {name!r} by its name, and there is no such folder; "
        f"known are names with {', '.join(_SHAPES)}"
    )


def _vision(tower: str | None) -> dict[str, Any]:
    config = _local(tower) if tower is not None else None
    if config is None:
        return dict(KNOWN_TOWERS.get(tower or "", _CLIP))
    vision = config.get("vision_config", config)
    return {**vision, "model_type": "clip_vision_model"}


def _put_together(
    text: dict[str, Any], vision: dict[str, Any], features: tuple[int, ...] | int | None
) -> Blueprint:
    layers = (-2, -5, -8, -11, 6) if features is None else features
    five = not isinstance(layers, int)
    return Blueprint(
        text=text,
        vision=vision,
        feature_layers=layers,
        keep_class=False,
        projector=ProjectorStyle(2, five),
        image_token_id=int(text["vocab_size"]),
    )


def counts(model: PreTrainedModel, recipe: Recipe) -> dict[str, int]:
    """How many numbers learn in each part, and in the adapter."""
    parts = {
        "projector": "model.multi_modal_projector",
        "language": "model.language_model",
        "tower": "model.vision_tower",
    }
    found: dict[str, int] = {
        part: sum(p.numel() for p in model.get_submodule(parts[part]).parameters())
        for part in recipe.train.parts
    }
    if "language" in found:
        whole: Any = model
        head = whole.get_output_embeddings().weight
        tied = head is whole.get_input_embeddings().weight
        found["language"] += 0 if tied else head.numel()
    if recipe.train.adapter is not None:
        rank = recipe.train.adapter.rank
        body = model.get_submodule("model.language_model")
        layers = [m for m in body.modules() if isinstance(m, torch.nn.Linear)]
        found["adapter"] = sum(rank * (m.in_features + m.out_features) for m in layers)
    return found


def memory(recipe: Recipe, model: PreTrainedModel, world: int, rows: int) -> dict[str, float]:
    """An estimate of the memory of one device in GB (10^9 bytes), by what takes it.

    Weights, gradients and AdamW's two averages are exact; activations are reckoned for rows of 832
    tokens and come without what the kernels and the allocator need besides.
    """
    wide = 4 if recipe.train.weights == "float32" or recipe.precision == "float32" else 2
    narrow = 4 if recipe.precision == "float32" else 2
    learning = counts(model, recipe)
    adapter = learning.pop("adapter", 0)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(learning.values())
    frozen_bytes = float((total - trained) * narrow)
    if recipe.quantized and recipe.train.adapter is not None:
        body = model.get_submodule("model.language_model").modules()
        small = sum(m.weight.numel() for m in body if isinstance(m, torch.nn.Linear))
        # four bits come with a scale and an offset for every 32 weights
        bits = 5.0 if recipe.train.adapter.bits == 4 else 8.0
        frozen_bytes -= small * (narrow - bits / 8)
    if adapter and learning.get("projector"):
        frozen_bytes += learning["projector"] * narrow  # peft keeps the first one as well
    trained += adapter
    split_states = world if recipe.parallel.startswith(("fsdp2", "zero")) else 1
    split_all = world if recipe.sharded else 1
    parts = {
        "weights": (frozen_bytes + trained * wide) / split_all,
        "gradients": trained * wide / split_states,
        "optimizer": 2 * trained * wide / split_states,
        "activations": float(_activations(recipe, model, rows)),
    }
    if recipe.parallel.endswith("-offload"):
        parts["optimizer"] = 0.0
    parts["together"] = sum(parts.values())
    return {name: round(value / 1e9, 2) for name, value in parts.items()}


def _activations(recipe: Recipe, model: PreTrainedModel, rows: int) -> int:
    config: Any = model.config
    text: Any = config.text_config
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    typical = min(TYPICAL_TOKENS, recipe.data.max_length) if recipe.model.tiny is None else side**2
    tokens = rows * typical
    if recipe.data.packing:
        tokens = recipe.data.packed_tokens or recipe.data.max_length * recipe.batch.per_device
    kind = 4 if recipe.precision == "float32" else 2
    # Inside a layer: about 12 values a token of the width, 4 of the inner width.
    layer = tokens * (12 * text.hidden_size + 4 * text.intermediate_size) * kind
    if recipe.activation_checkpointing:
        return int(tokens * text.hidden_size * text.num_hidden_layers * kind + layer)
    return int(layer * text.num_hidden_layers)
