"""CLIP image encoders (Radford et al., 2021): the towers of the published models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.vision_towers import VisionTower, register_vision_tower

__all__ = ["CLIP", "CLIP_L_336"]

_HEAD_WIDTH = 64  # of every published CLIP; the shapes of the weights do not tell it

_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_L_336 = "openai/clip-vit-large-patch14-336"


def _config_from_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Sizes from weights under the tower's own names.

    Raises:
        CheckpointError: a width that no published CLIP has.
    """
    width = tensors["embeddings.class_embedding"].shape[0]
    if width % _HEAD_WIDTH:
        raise CheckpointError(
            f"the number of heads of a CLIP of width {width} is unknown; put its configuration "
            "beside the weights as vision_config.json"
        )
    patch = tensors["embeddings.patch_embedding.weight"].shape[-1]
    positions = tensors["embeddings.position_embedding.weight"].shape[0]
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")}
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // _HEAD_WIDTH,
        "patch_size": patch,
        "image_size": round((positions - 1) ** 0.5) * patch,
    }


CLIP = register_vision_tower(
    VisionTower(
        model_type="clip_vision_model",
        parent_type="clip",
        prefix_tokens=1,
        unused=("post_layernorm",),
        file_prefix="vision_model.",
        defaults={**_CLIP_L, "image_size": 336},
        published={
            CLIP_L_336: {**_CLIP_L, "image_size": 336},
            "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
        },
        # The original's name of the same model with features of five hidden states.
        aliases={"clip_4layers_336": CLIP_L_336},
        config_from_weights=_config_from_weights,
    )
)
