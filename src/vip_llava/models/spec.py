"""What a checkpoint says it is, in one form for every layout, and its transformers configuration.

A `Blueprint` is read from `config.json` (as plain JSON; no code of a checkpoint is ever asked)
together with the names and shapes of the weights, because the original's configuration leaves out
the image encoder and half of the projector. It knows no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from transformers import CONFIG_MAPPING, LlavaConfig, PreTrainedConfig, VipLlavaConfig

from vip_llava.errors import CheckpointError
from vip_llava.models.layouts import PROJECTOR, TOWER, ProjectorStyle, projector_style

__all__ = [
    "BACKBONES",
    "FIVE_LAYERS",
    "Blueprint",
    "blueprint_from_hub",
    "blueprint_from_original",
    "is_hub_config",
    "is_original_config",
    "text_config_of",
    "transformers_config",
]

FIVE_LAYERS = (-2, -5, -8, -11, 6)
"""Hidden states of the image encoder that ViP-LLaVA puts side by side, in this order."""

MARK = "vip_llava"
"""Key of our own notes in a configuration: what the other layout could not say."""

Shapes = Mapping[str, torch.Tensor]

# The encoders that the original names without describing them.
_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "clip_4layers_336": {**_CLIP_L, "image_size": 336},
    "openai/clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
}
_CLIP_HEAD_WIDTH = 64  # of every published CLIP; the shapes of the weights don't tell it

BACKBONES = ("llama", "phi3", "mistral", "qwen2", "gemma")


@dataclass(frozen=True, slots=True)
class Blueprint:
    """One multimodal model, whatever its layout.

    Args:
        text: the language model's configuration as JSON, with `model_type`.
        vision: the image encoder's, likewise.
        feature_layers: index or indices into the encoder's hidden states (0 is its input).
        keep_class: whether the class token goes in front of the patch tokens.
        projector: its form.
        image_token_id: what marks an image token in `input_ids`. It may be one past the embedding
            table: such an id is never looked up (see `towers.py`), so no text can collide with it.
        notes: further settings that other parts want (template, image_aspect_ratio, start and end
            markers), as found.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    feature_layers: int | tuple[int, ...]
    keep_class: bool
    projector: ProjectorStyle
    image_token_id: int
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def clip(self) -> bool:
        """Whether the image encoder is a CLIP: the only kind whose insides are known here."""
        return bool(self.vision["model_type"] == "clip_vision_model")

    @property
    def tokens_per_view(self) -> int:
        """Image tokens of one view."""
        if not self.clip:
            return int(self.notes["image_seq_length"])
        side = int(self.vision["image_size"]) // int(self.vision["patch_size"])
        return side * side + int(self.keep_class)


def is_hub_config(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of a Hugging Face VipLlava or LLaVA folder."""
    return config.get("model_type") in ("vipllava", "llava") and "text_config" in config


def is_original_config(config: Mapping[str, Any]) -> bool:
    """Whether this is one of the original's (a language model's, with `mm_...` settings)."""
    return "text_config" not in config and any(
        key in config for key in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type")
    )


def backbone_of(config: Mapping[str, Any], names: Shapes) -> str:
    """transformers' model type of the language model below one of the original's names.

    Raises:
        CheckpointError: a backbone that is not supported; says which are.
    """
    said = f"{config.get('model_type', '')} {' '.join(config.get('architectures') or [])}".lower()
    if "phi" in said:
        if not any(name.endswith("self_attn.qkv_proj.weight") for name in names):
            raise CheckpointError(f"{said.strip()!r}: of the Phi models only Phi-3 is supported")
        return "phi3"
    if "mpt" in said:
        raise CheckpointError("MPT backbones are not supported: transformers has no LLaVA with MPT")
    for backbone in ("mistral", "qwen2", "gemma"):
        if backbone in said:
            return backbone
    if "llama" in said or config.get("model_type") == "llava":
        return "llama"
    raise CheckpointError(
        f"unknown model type {config.get('model_type')!r}; expected one of vipllava, llava, "
        f"llava_llama, llava_phi3, llava_mistral, or a language model of type {', '.join(BACKBONES)}"
    )


def text_config_of(config: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """The part of a flat configuration that the language model's class knows."""
    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[backbone])}
    known |= {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    known -= {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "id2label",
        "label2id",
    }
    text = {key: value for key, value in config.items() if key in known}
    return {**text, "model_type": backbone}


def blueprint_from_original(
    config: Mapping[str, Any], tensors: Shapes, vision: Mapping[str, Any] | None = None
) -> Blueprint:
    """Read one of the original's configurations; `tensors` have canonical names.

    Args:
        vision: the image encoder's configuration where some file has it; otherwise it comes from
            the encoder's name, or from the shapes of its weights.

    Raises:
        CheckpointError: contradictions between configuration and weights, or no encoder.
    """
    tower = dict(vision) if vision else _tower_config(config, tensors)
    style = projector_style(tensors, config.get("mm_projector_type"))
    mark = _mark(config)
    layers = _feature_layers(config, tensors, int(tower["hidden_size"]))
    if layers == FIVE_LAYERS and isinstance(mark.get("feature_layers"), list):
        layers = tuple(int(layer) for layer in mark["feature_layers"])
    strategy = config.get("mm_vision_select_feature", "patch")
    if strategy not in ("patch", "cls_patch"):
        raise CheckpointError(
            f"mm_vision_select_feature is {strategy!r}; expected patch or cls_patch"
        )
    rows = tensors["model.language_model.embed_tokens.weight"].shape[0]
    return Blueprint(
        text=text_config_of(config, backbone_of(config, tensors)),
        vision=tower,
        feature_layers=layers,
        # The five-layer encoder ignores the setting and always drops the class token.
        keep_class=strategy == "cls_patch" and isinstance(layers, int),
        projector=style,
        image_token_id=int(mark.get("image_token_index", rows)),
        notes={
            **mark,
            # Nothing said means the plain image processor, which is what "square" stands for.
            "image_aspect_ratio": config.get("image_aspect_ratio") or "square",
            "use_start_end": bool(config.get("mm_use_im_start_end", False)),
            "mm_projector_type": style.type_name,
            "mm_vision_tower": config.get("mm_vision_tower"),
        },
    )


def _mark(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our own notes in a configuration."""
    mark = config.get(MARK)
    return dict(mark) if isinstance(mark, dict) else {}


def _feature_layers(
    config: Mapping[str, Any], tensors: Shapes, tower_width: int
) -> int | tuple[int, ...]:
    """One layer or five, as the projector's width says: the original's settings don't."""
    width = tensors[f"{PROJECTOR}linear_1.weight"].shape[1]
    if width == tower_width:
        layer = config.get("mm_vision_select_layer", -2)
        if not isinstance(layer, int):
            raise CheckpointError(f"mm_vision_select_layer must be a whole number, not {layer!r}")
        return layer
    if width == len(FIVE_LAYERS) * tower_width:
        return FIVE_LAYERS
    raise CheckpointError(
        f"the projector takes {width} features, the image encoder gives {tower_width} a layer; "
        f"expected {tower_width} (one layer) or {len(FIVE_LAYERS) * tower_width} (five layers)"
    )


def _tower_config(config: Mapping[str, Any], tensors: Shapes) -> dict[str, Any]:
    """The encoder's configuration from its name, else from the shapes of its weights."""
    class_token = tensors.get(f"{TOWER}embeddings.class_embedding")
    known = KNOWN_TOWERS.get(str(config.get("mm_vision_tower")))
    if class_token is None:
        if known is None:
            raise CheckpointError(
                "the checkpoint has no image encoder; give its folder as vision_tower= "
                "(command line: --vision-tower)"
            )
        return dict(known)
    width = class_token.shape[0]
    if known is not None and known["hidden_size"] == width:
        return dict(known)
    patch = tensors[f"{TOWER}embeddings.patch_embedding.weight"].shape[-1]
    positions = tensors[f"{TOWER}embeddings.position_embedding.weight"].shape[0]
    layers = {name.split(".")[4] for name in tensors if name.startswith(f"{TOWER}encoder.layers.")}
    if width % _CLIP_HEAD_WIDTH:
        raise CheckpointError(
            f"an image encoder of width {width} is no published CLIP, so its heads can't be told "
            "from its weights; put its configuration beside it as vision_config.json"
        )
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": tensors[f"{TOWER}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // _CLIP_HEAD_WIDTH,
        "patch_size": patch,
        "image_size": round((positions - 1) ** 0.5) * patch,
    }


def blueprint_from_hub(config: Mapping[str, Any], tensors: Shapes) -> Blueprint:
    """Read the configuration of a Hugging Face folder; `tensors` have canonical names.

    Raises:
        CheckpointError: a setting that neither transformers class has.
    """
    viplava = config["model_type"] == "vipllava"
    default = FIVE_LAYERS if viplava else -2
    # The name was plural up to transformers 5.17.
    layers = config.get("vision_feature_layer", config.get("vision_feature_layers", default))
    if not isinstance(layers, int):
        layers = tuple(int(layer) for layer in layers)
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise CheckpointError(
            f"vision_feature_select_strategy is {strategy!r}; expected default or full"
        )
    mark = _mark(config)
    token = config.get("image_token_index", config.get("image_token_id", 32000))
    tied = config.get("tie_word_embeddings")
    text = _sub_config(config, "text_config", "llama")
    if tied is not None:
        text["tie_word_embeddings"] = bool(tied) or bool(text.get("tie_word_embeddings"))
    return Blueprint(
        text=text,
        vision=_sub_config(config, "vision_config", "clip_vision_model"),
        feature_layers=layers,
        keep_class=strategy == "full" and not viplava,
        projector=projector_style(tensors, mark.get("mm_projector_type")),
        image_token_id=int(token),
        notes={
            "projector_layernorm_eps": config.get("projector_layernorm_eps", 1e-5),
            "image_seq_length": config.get("image_seq_length", 576),
            **mark,
        },
    )


def _sub_config(config: Mapping[str, Any], key: str, default: str) -> dict[str, Any]:
    found = config.get(key)
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: {key} must be a JSON object")
    part = {
        name: value for name, value in found.items() if name not in ("auto_map", "_name_or_path")
    }
    part.setdefault("model_type", default)
    if default == "clip_vision_model":
        # transformers fills these in for a bare vision_config; a tower without them is CLIP-L/336.
        for name, value in {**_CLIP_L, "image_size": 336}.items():
            if part["model_type"] == default:
                part.setdefault(name, value)
    return part


def transformers_config(blueprint: Blueprint) -> PreTrainedConfig:
    """The configuration of the transformers class that fits: VipLlava with a norm, else Llava."""
    if blueprint.vision["model_type"] not in CONFIG_MAPPING:
        # The default model's encoder makes itself known to transformers when it is imported.
        import_module("vip_llava.models.default.efficientnet")
    for part in (blueprint.text, blueprint.vision):
        if part["model_type"] not in CONFIG_MAPPING:
            raise CheckpointError(f"unknown model type {part['model_type']!r} in config.json")
    text = CONFIG_MAPPING[blueprint.text["model_type"]](**_without_type(blueprint.text))
    vision = CONFIG_MAPPING[blueprint.vision["model_type"]](**_without_type(blueprint.vision))
    layers = blueprint.feature_layers
    common: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": blueprint.image_token_id,
        "image_seq_length": blueprint.tokens_per_view,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        MARK: {key: value for key, value in blueprint.notes.items() if value is not None},
    }
    picked = layers if isinstance(layers, int) else list(layers)
    if not blueprint.projector.norm:
        common["vision_feature_layer"] = picked
        common["vision_feature_select_strategy"] = "full" if blueprint.keep_class else "default"
        return LlavaConfig(**common)
    names = {field.name for field in dataclasses.fields(VipLlavaConfig)}
    # The name was plural up to transformers 5.17.
    singular = "vision_feature_layer"
    common[singular if singular in names else "vision_feature_layers"] = picked
    common["projector_layernorm_eps"] = float(blueprint.notes.get("projector_layernorm_eps", 1e-5))
    return VipLlavaConfig(**common)


def _without_type(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model_type"}
