"""DINOv2 image encoders (Oquab et al., 2023), without register tokens; ImageNet's normalization."""

from __future__ import annotations

from vip_llava.models.vision_towers import VisionTower, register_vision_tower

__all__ = ["DINOV2"]

DINOV2 = register_vision_tower(
    VisionTower(
        model_type="dinov2",
        prefix_tokens=1,
        layers="encoder.layer",
        # The mask token serves pretraining only.
        unused=("layernorm", "embeddings.mask_token"),
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        published={
            "facebook/dinov2-base": {"image_size": 518},
            "facebook/dinov2-large": {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 518,
            },
        },
    )
)
