"""Lets the id of image tokens lie outside the embedding table.

The original marks an image by -200 and has no embedding for it. Taking the first id past the table
keeps every weight, every logit and the loss exactly as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["allow_image_token"]


@dataclasses.dataclass(frozen=True)
class _MaskImageToken:
    """Pre-hook of the embedding: looks up token 0 for image tokens, which are overwritten later."""

    image_token_id: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids = args[0]
        return (torch.where(ids == self.image_token_id, 0, ids), *args[1:])


def allow_image_token(model: PreTrainedModel, image_token_id: int) -> None:
    """Accept `image_token_id` in `input_ids` although the embedding table has no such row."""
    embedding = model.get_input_embeddings()
    if image_token_id >= embedding.get_parameter("weight").shape[0]:
        embedding.register_forward_pre_hook(_MaskImageToken(image_token_id))
