"""`ModelSpec`: what a checkpoint says it is, in one form for every layout.

A spec is read from `config.json` (as plain JSON; no code of a checkpoint runs) together with the
names and shapes of the weights, because the original's configuration leaves out the vision tower
and half of the projector. `transformers_config` turns it into a transformers configuration. This
module does not know files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, LlavaConfig, PreTrainedConfig, VipLlavaConfig

from vip_llava.errors import CheckpointError
from vip_llava.models.backbones import recognize_backbone, text_config_of
from vip_llava.models.layouts import PROJECTOR, TOWER, ProjectorStyle, projector_style
from vip_llava.models.vision_towers import VisionTower, get_vision_tower, published_tower

__all__ = [
    "FEATURE_LAYERS_ARGUMENT",
    "FIVE_LAYERS",
    "METADATA_KEY",
    "ModelSpec",
    "is_hub_config",
    "is_original_config",
    "layer_setting",
    "spec_from_hub",
    "spec_from_original",
    "transformers_config",
]

FIVE_LAYERS = (-2, -5, -8, -11, 6)
"""Hidden states of the tower that ViP-LLaVA concatenates, in this order."""

FEATURE_LAYERS_ARGUMENT = (
    "vision_feature_layer"
    if "vision_feature_layer" in {field.name for field in dataclasses.fields(VipLlavaConfig)}
    else "vision_feature_layers"
)
"""`VipLlavaConfig`'s argument for the feature layers; plural up to transformers 5.17."""

METADATA_KEY = "vip_llava"
"""Key in `config.json` of what the other layout could not say."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One multimodal model, whatever its layout.

    Args:
        text: the language model's configuration as JSON, with `model_type`.
        vision: the vision tower's, likewise.
        feature_layers: index or indices into the tower's hidden states (0 is its input).
        drop_class_token: whether the first token of each hidden state is left out.
        projector: its form.
        image_token_id: what marks an image token in `input_ids`. It may be one past the embedding
            table: such an id is never looked up (see `image_token.py`), so no text can equal it.
        metadata: further settings as found: `template`, `image_aspect_ratio`, `use_start_end`,
            `vocab_size`, `projector_layernorm_eps`, `mm_vision_tower`.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    feature_layers: int | tuple[int, ...]
    drop_class_token: bool
    projector: ProjectorStyle
    image_token_id: int
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tower(self) -> VisionTower:
        """The kind of the vision tower."""
        return get_vision_tower(str(self.vision["model_type"]))

    @property
    def image_size(self) -> int:
        """Side of the square image that the tower reads, in pixels."""
        return self.tower.image_size(self.vision)

    @property
    def tokens_per_view(self) -> int:
        """Image tokens of one view."""
        return self.tower.num_tokens(self.vision, self.drop_class_token)

    @property
    def is_vip_llava(self) -> bool:
        """Whether transformers' VipLlava class fits, which drops the first token of every state.

        The class is Llava otherwise, if need be with this package's projector.
        """
        return self.projector.norm and self.drop_class_token

    @property
    def has_standard_projector(self) -> bool:
        """Whether the projector of transformers' own class fits."""
        return self.projector.linears == 2 and self.projector.norm == self.is_vip_llava


def is_hub_config(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of a Hugging Face VipLlava or LLaVA folder."""
    return config.get("model_type") in ("vipllava", "llava") and "text_config" in config


def is_original_config(config: Mapping[str, Any]) -> bool:
    """Whether this is one of the original's (a language model's, with `mm_...` settings)."""
    return "text_config" not in config and any(
        key in config for key in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type")
    )


def layer_setting(config: Any) -> int | tuple[int, ...]:
    """The feature layers of a transformers configuration."""
    layers = getattr(config, "vision_feature_layer", None)
    layers = config.vision_feature_layers if layers is None else layers
    return layers if isinstance(layers, int) else tuple(layers)


def spec_from_original(
    config: Mapping[str, Any], tensors: Tensors, vision: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Read one of the original's configurations; `tensors` have canonical names.

    Args:
        vision: the tower's configuration, if a file has it. It comes from the tower's name, or
            from the shapes of its weights, otherwise.

    Raises:
        CheckpointError: configuration and weights contradict each other, or there is no tower.
    """
    found = vision if vision is not None else _tower_config(config, tensors)
    tower = get_vision_tower(str(found.get("model_type")))
    found = tower.complete(found)
    style = projector_style(tensors, config.get("mm_projector_type"))
    metadata = _metadata(config)
    layers = _feature_layers(config, metadata, tensors, int(found["hidden_size"]))
    strategy = config.get("mm_vision_select_feature", "patch")
    if strategy not in ("patch", "cls_patch"):
        raise CheckpointError(
            f"mm_vision_select_feature is {strategy!r}; expected patch or cls_patch"
        )
    # With five layers the original ignores the setting and always drops the class token.
    dropped = strategy == "patch" or not isinstance(layers, int)
    backbone = recognize_backbone(config, tensors)
    rows = tensors["model.language_model.embed_tokens.weight"].shape[0]
    return ModelSpec(
        text=text_config_of(config, backbone),
        vision=found,
        feature_layers=layers,
        drop_class_token=dropped and tower.prefix_tokens > 0,
        projector=style,
        image_token_id=int(metadata.get("image_token_index", rows)),
        metadata={
            **metadata,
            # Without the setting the original uses the plain image processor, which is "square".
            "image_aspect_ratio": config.get("image_aspect_ratio") or "square",
            "use_start_end": bool(config.get("mm_use_im_start_end", False)),
            "mm_projector_type": style.type_name,
            "mm_vision_tower": config.get("mm_vision_tower"),
        },
    )


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get(METADATA_KEY)
    return dict(found) if isinstance(found, dict) else {}


def _feature_layers(
    config: Mapping[str, Any], metadata: Mapping[str, Any], tensors: Tensors, tower_width: int
) -> int | tuple[int, ...]:
    """One layer or several, as the projector's width says: the original's settings do not."""
    width = tensors[f"{PROJECTOR}linear_1.weight"].shape[1]
    named = metadata.get("feature_layers")
    if isinstance(named, list) and width == len(named) * tower_width:
        return tuple(int(layer) for layer in named)
    if width == tower_width:
        layer = config.get("mm_vision_select_layer", -2)
        if not isinstance(layer, int):
            raise CheckpointError(f"mm_vision_select_layer must be a whole number, not {layer!r}")
        return layer
    if width == len(FIVE_LAYERS) * tower_width:
        return FIVE_LAYERS
    raise CheckpointError(
        f"the projector takes {width} features and the vision tower has {tower_width} per layer; "
        f"expected {tower_width} (one layer) or {len(FIVE_LAYERS) * tower_width} (five layers)"
    )


def _tower_config(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The tower's configuration from its name, or from the shapes of weights of a CLIP."""
    known = published_tower(str(config.get("mm_vision_tower")))
    weights = {k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
    if not weights:
        if known is None:
            raise CheckpointError(
                "the checkpoint has no vision tower; give its folder as vision_tower= "
                "(command line: --vision-tower)"
            )
        return known
    class_token = weights.get("embeddings.class_embedding")
    if class_token is None:
        raise CheckpointError(
            "the vision tower inside the checkpoint is not a CLIP; put its configuration beside "
            "the weights as vision_config.json"
        )
    if known is not None and known["hidden_size"] == class_token.shape[0]:
        return known
    clip = get_vision_tower("clip_vision_model")
    assert clip.config_from_weights is not None
    return clip.config_from_weights(weights)


def spec_from_hub(config: Mapping[str, Any], tensors: Tensors) -> ModelSpec:
    """Read the configuration of a Hugging Face folder; `tensors` have canonical names.

    Raises:
        CheckpointError: a setting that neither transformers class has.
    """
    vip_llava = config["model_type"] == "vipllava"
    default = FIVE_LAYERS if vip_llava else -2
    layers = config.get("vision_feature_layer", config.get("vision_feature_layers", default))
    if not isinstance(layers, int):
        layers = tuple(int(layer) for layer in layers)
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise CheckpointError(
            f"vision_feature_select_strategy is {strategy!r}; expected default or full"
        )
    metadata = _metadata(config)
    text = _section(config, "text_config")
    text.setdefault("model_type", "llama")
    if (tied := config.get("tie_word_embeddings")) is not None:
        text["tie_word_embeddings"] = bool(tied) or bool(text.get("tie_word_embeddings"))
    vision = _section(config, "vision_config")
    tower = get_vision_tower(str(vision.get("model_type", "clip_vision_model")))
    return ModelSpec(
        text=text,
        vision=tower.complete({**tower.defaults, **vision}),
        feature_layers=layers,
        drop_class_token=strategy == "default" or vip_llava,
        projector=projector_style(tensors, metadata.get("mm_projector_type")),
        image_token_id=int(config.get("image_token_index", config.get("image_token_id", 32000))),
        metadata={
            "projector_layernorm_eps": config.get("projector_layernorm_eps", 1e-5),
            **metadata,
        },
    )


def _section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key)
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: {key} must be a JSON object")
    return {k: value for k, value in found.items() if k not in ("auto_map", "_name_or_path")}


def transformers_config(spec: ModelSpec) -> PreTrainedConfig:
    """The configuration of the transformers class that fits, VipLlava or Llava."""
    text_type = spec.text["model_type"]
    if text_type not in CONFIG_MAPPING:
        raise CheckpointError(f"unknown model type {text_type!r} in text_config")
    text = CONFIG_MAPPING[text_type](**_without_type(spec.text))
    layers = spec.feature_layers
    common: dict[str, Any] = {
        "text_config": text,
        "vision_config": CONFIG_MAPPING[spec.tower.model_type](**_without_type(spec.vision)),
        "image_token_index": spec.image_token_id,
        "image_seq_length": spec.tokens_per_view,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        METADATA_KEY: {key: value for key, value in spec.metadata.items() if value is not None},
    }
    picked = layers if isinstance(layers, int) else list(layers)
    if not spec.is_vip_llava:
        common["vision_feature_layer"] = picked
        common["vision_feature_select_strategy"] = "default" if spec.drop_class_token else "full"
        return LlavaConfig(**common)
    common[FEATURE_LAYERS_ARGUMENT] = picked
    common["projector_layernorm_eps"] = float(spec.metadata.get("projector_layernorm_eps", 1e-5))
    return VipLlavaConfig(**common)


def _without_type(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model_type"}
