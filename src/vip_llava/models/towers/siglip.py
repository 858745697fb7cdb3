"""SigLIP image encoders (Zhai et al., 2023): no class token, pixels normalized to -1..1."""

from __future__ import annotations

from vip_llava.models.vision_towers import VisionTower, register_vision_tower

__all__ = ["SIGLIP"]

SIGLIP = register_vision_tower(
    VisionTower(
        model_type="siglip_vision_model",
        parent_type="siglip",
        prefix_tokens=0,
        # The pooling head and the norm before it serve image retrieval only.
        unused=("post_layernorm", "head"),
        file_prefix="vision_model.",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        published={
            "google/siglip-base-patch16-224": {},
            "google/siglip-so400m-patch14-384": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            },
        },
    )
)
