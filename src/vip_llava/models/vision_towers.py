"""The registry of vision towers: what the package has to know about each kind of image encoder.

A tower is a transformers model that returns hidden states [N, tokens, width]. Its `VisionTower`
says how its files are read, how many tokens an image takes and how pixels are normalized. A new
kind is one file that calls `register_vision_tower`, and one line in `_BUILT_IN`.

This module does not know language models, projectors or checkpoint layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeAlias

import torch
from transformers import CONFIG_MAPPING

from vip_llava.errors import CheckpointError
from vip_llava.prompting.geometry import CLIP_MEAN, CLIP_STD

__all__ = [
    "VisionTower",
    "canonical_tower_id",
    "get_vision_tower",
    "published_tower",
    "register_vision_tower",
    "registered_vision_towers",
    "tower_config",
]

_BUILT_IN = (
    "vip_llava.models.towers.clip",
    "vip_llava.models.towers.siglip",
    "vip_llava.models.towers.dinov2",
    "vip_llava.models.default.efficientnet",
)
"""Modules that register the towers of this package when they are imported."""

# Settings that name code, or stages for transformers' backbones, which truncation would invalidate.
_IGNORED = ("auto_map", "_name_or_path", "model_type", "out_features", "out_indices", "stage_names")

Triple: TypeAlias = tuple[float, float, float]
Config: TypeAlias = Mapping[str, Any]

_TOWERS: dict[str, VisionTower] = {}


def patch_grid(config: Config, image_size: int) -> int:
    """Tokens of a square image that is cut into square patches: (size // patch size) squared."""
    return (image_size // _side(config, "patch_size")) ** 2


@dataclass(frozen=True, slots=True)
class VisionTower:
    """One kind of image encoder.

    Args:
        model_type: `model_type` of its transformers configuration.
        prefix_tokens: tokens before those of the patches in every hidden state; a class token is 1.
        layers: path of the list of encoder layers inside the module. Layers behind the deepest
            hidden state used are removed. None: the tower always runs whole.
        unused: modules and parameters that no hidden state depends on, such as a final norm. They
            are never trained.
        image_mean: mean of each channel on a scale of 0 to 1; padding has this color.
        image_std: standard deviation of each channel.
        parent_type: `model_type` of a model that contains the tower as its `vision_config`.
        file_prefix: level in front of the names of weights in files that the class does not have.
        defaults: what transformers' LLaVA classes fill into a `vision_config`, where that differs
            from the tower's own class.
        published: configurations of published towers by hub id. A plan, or a checkpoint that names
            its tower without describing it, needs no download then.
        aliases: other names of hub ids.
        image_tokens: `image_tokens(config, image_size)` is the number of tokens of a square image
            without the prefix tokens.
        config_from_weights: configuration from the weights' shapes, where that is possible.
    """

    model_type: str
    prefix_tokens: int
    layers: str | None = "encoder.layers"
    unused: tuple[str, ...] = ()
    image_mean: Triple = CLIP_MEAN
    image_std: Triple = CLIP_STD
    parent_type: str | None = None
    file_prefix: str = ""
    defaults: Config = field(default_factory=dict)
    published: Mapping[str, Config] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    image_tokens: Callable[[Config, int], int] = patch_grid
    config_from_weights: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]] | None = None

    def complete(self, config: Config) -> dict[str, Any]:
        """`config` with the sizes that transformers' class would fill in."""
        settings = {key: value for key, value in config.items() if key not in _IGNORED}
        built = CONFIG_MAPPING[self.model_type](**settings)
        for key in ("hidden_size", "num_hidden_layers", "image_size", "patch_size"):
            if key not in settings and hasattr(built, key):
                settings[key] = getattr(built, key)
        return {**settings, "model_type": self.model_type}

    def image_size(self, config: Config) -> int:
        """Side of the square image that the tower reads, in pixels."""
        return _side(config, "image_size")

    def num_hidden_layers(self, config: Config) -> int:
        """Encoder layers; a tower with n of them has the hidden states 0 to n."""
        return int(config.get("num_hidden_layers", 0))

    def num_tokens(self, config: Config, drop_class_token: bool) -> int:
        """Tokens of one image, with or without the first token of the hidden state."""
        tokens = self.image_tokens(config, self.image_size(config))
        return self.prefix_tokens + tokens - int(drop_class_token)

    def select_weights(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tower's weights among those of its own folder or of its parent model's."""
        inside = {k: v for k, v in tensors.items() if k.startswith("vision_model.")}
        return {
            name.removeprefix("vision_model."): tensor
            for name, tensor in (inside or tensors).items()
            if not name.endswith("embeddings.position_ids")
        }


def _side(config: Config, key: str) -> int:
    value = config[key]
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise CheckpointError(f"the vision tower's {key} must be one number or a square: {value}")
    return int(sides.pop())


def register_vision_tower(tower: VisionTower) -> VisionTower:
    """Make a kind of tower known; a second one of the same `model_type` replaces the first.

    Its configuration and model class must be known to transformers' `AutoConfig` and `AutoModel`.
    """
    _TOWERS[tower.model_type] = tower
    return tower


def _load_built_in() -> None:
    for module in _BUILT_IN:
        import_module(module)


def registered_vision_towers() -> tuple[VisionTower, ...]:
    """All kinds of towers, in the order of registration."""
    _load_built_in()
    return tuple(_TOWERS.values())


def get_vision_tower(model_type: str) -> VisionTower:
    """The tower of a `vision_config` with this `model_type`.

    Raises:
        CheckpointError: no such tower is registered; names those that are.
    """
    _load_built_in()
    if model_type not in _TOWERS:
        raise CheckpointError(
            f"vision tower type {model_type!r} is not registered; expected one of "
            f"{', '.join(sorted(_TOWERS))}. To add one, call "
            "vip_llava.models.vision_towers.register_vision_tower (see CONTRIBUTING.md)"
        )
    return _TOWERS[model_type]


def tower_config(config: Config) -> dict[str, Any]:
    """The tower's own configuration from the `config.json` of its folder or its parent model's.

    Raises:
        CheckpointError: the type is not registered.
    """
    inner = config.get("vision_config")
    for tower in registered_vision_towers():
        if isinstance(inner, Mapping) and config.get("model_type") == tower.parent_type:
            return tower.complete(inner)
    return get_vision_tower(str(config.get("model_type"))).complete(config)


def canonical_tower_id(name: str) -> str:
    """The hub id that `name` stands for; a name without an alias is one already."""
    return next((t.aliases[name] for t in registered_vision_towers() if name in t.aliases), name)


def published_tower(name: str) -> dict[str, Any] | None:
    """Configuration of a published tower by hub id or alias; None for other names."""
    hub_id = canonical_tower_id(name)
    for tower in registered_vision_towers():
        if hub_id in tower.published:
            return tower.complete(tower.published[hub_id])
    return None
