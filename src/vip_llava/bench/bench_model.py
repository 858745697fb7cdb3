"""The model that is measured, prompts for it, and how transformers answers them.

Prompts are random ids with images of random pixels, and weights may be random: the contents do not
matter for the time an answer takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine import Engine, EngineConfig

__all__ = ["BenchModel", "Prompt", "TokenTimer", "random_model"]

Prompt = tuple[list[int], Tensor]
"""Ids and pixel values, the first arguments of `Engine.submit`."""


@dataclass(slots=True)
class TokenTimer:
    """A streamer for transformers that records when the prompt and each token are handed out.

    transformers synchronizes with the device before it calls `put`.
    """

    times: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing; transformers calls it at the end."""


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model to measure, and what it takes to make prompts for it."""

    model: PreTrainedModel
    image_token_id: int
    tokens_per_view: int
    side: int
    """Of a view, in pixels."""

    def prompt(self, seed: int, text_tokens: int) -> Prompt:
        """Random ids with one random view after the first id."""
        generator = torch.Generator().manual_seed(seed)
        vocabulary = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        end = min(vocabulary, self.image_token_id) if self.image_token_id else vocabulary
        text = torch.randint(1, end, (text_tokens,), generator=generator).tolist()
        pixels = torch.randn(1, 3, self.side, self.side, generator=generator)
        return [text[0], *[self.image_token_id] * self.tokens_per_view, *text[1:]], pixels

    def engine(self, **config: Any) -> Engine:
        """A new engine without stop ids. `config`: fields of `EngineConfig`."""
        return Engine(
            self.model,
            image_token_id=self.image_token_id,
            suppress_ids=[self.image_token_id],
            config=EngineConfig(**config),
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        count: int,
        streamer: TokenTimer | None = None,
        *,
        static_cache: bool = False,
    ) -> Tensor:
        """Greedy `generate` of transformers: new ids [B, count] for prompts of equal length.

        static_cache: use a cache of fixed size, for which transformers compiles its steps on CUDA.
        """
        model: Any = self.model
        ids = torch.tensor([ids for ids, _ in prompts], device=model.device)
        pixels = torch.cat([pixels for _, pixels in prompts])
        dtype = next(model.base_model.vision_tower.parameters()).dtype
        with torch.inference_mode():
            found: Tensor = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels.to(device=model.device, dtype=dtype),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                suppress_tokens=[self.image_token_id],
                streamer=streamer,
                cache_implementation="static" if static_cache else None,
            )
        return found[:, ids.shape[1] :]


def random_model(
    size: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> BenchModel:
    """A VipLlava with random weights: "tiny" for trials, "7b" for the published sizes.

    dtype: float32 on a CPU and bfloat16 elsewhere by default.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    patch = 14
    if size == "7b":
        side = 336
        vision = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=side, patch_size=patch, projection_dim=768,
        )  # fmt: skip
        text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096)
    else:
        side = 56
        small: dict[str, Any] = {
            "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        }  # fmt: skip
        vision = CLIPVisionConfig(**small, num_hidden_layers=12, image_size=side, patch_size=patch)
        text = LlamaConfig(
            **small, vocab_size=512, num_hidden_layers=2, max_position_embeddings=1024
        )
    image_token_id = text.vocab_size - 1
    config = VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token_id
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = VipLlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return BenchModel(model.eval(), image_token_id, (side // patch) ** 2, side)
