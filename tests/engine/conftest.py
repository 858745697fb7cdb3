"""Tiny random models and hand-made batches for the engine, without a tokenizer or a processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

IMAGE = 99
VIEW_TOKENS = 4

MakeBatch = Callable[..., dict[str, Tensor]]


def _text() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        pad_token_id=0,
    )


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=11,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )


def _randomised(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Every one that starts at random, the class row of the tower (one dimension) too.
            if parameter.dim() > 1 or name.endswith("class_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def vip_model() -> PreTrainedModel:
    """A five-layer VipLlava: vocabulary 100, `<image>` is 99, a view is 4 tokens, 96 positions."""
    return _randomised(
        VipLlavaForConditionalGeneration(
            VipLlavaConfig(vision_config=_vision(), text_config=_text(), image_token_index=IMAGE)
        )
    )


@pytest.fixture(scope="session")
def llava_model() -> PreTrainedModel:
    """A one-layer Llava of the same sizes."""
    return _randomised(
        LlavaForConditionalGeneration(
            LlavaConfig(vision_config=_vision(), text_config=_text(), image_token_index=IMAGE)
        )
    )


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """`make_batch(lengths, views)`: rows of that many text ids with that many views in front."""

    def make(lengths: Sequence[int], views: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows, pixels = [], []
        for length, count in zip(lengths, views, strict=True):
            text = torch.randint(1, 90, (length,), generator=generator).tolist()
            rows.append([text[0]] + [IMAGE] * (VIEW_TOKENS * count) + text[1:])
            pixels.append(torch.randn(count, 3, 28, 28, generator=generator))
        width = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            ),
        }
        if sum(views):
            batch["pixel_values"] = torch.cat(pixels)
        return batch

    return make


@pytest.fixture(scope="session")
def row_of() -> Callable[..., dict[str, Tensor]]:
    """`row_of(batch, row, views)`: one row of a batch as a batch of its own, without padding."""

    def take(batch: dict[str, Tensor], row: int, views: Sequence[int]) -> dict[str, Tensor]:
        kept = batch["attention_mask"][row].bool()
        single = {
            "input_ids": batch["input_ids"][row][kept].unsqueeze(0),
            "attention_mask": torch.ones(1, int(kept.sum()), dtype=torch.long),
        }
        if views[row]:
            start = sum(views[:row])
            single["pixel_values"] = batch["pixel_values"][start : start + views[row]]
        return single

    return take
