"""What is measured: a model, prompts for it, and transformers' own way to answer them.

Prompts are random ids about images of random pixels: what is said does not matter for how long it
takes, so random weights of the published sizes do as well as the published ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.config import EngineSettings
from vip_llava.engine.engine import Engine

__all__ = ["Stopwatch", "Subject", "random_subject"]


class Stopwatch:
    """Looks at the time whenever transformers hands out a token; it waits for the device then."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt and with each token, on the CPU."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called at the end."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure, and what it takes to make prompts for it."""

    model: PreTrainedModel
    image_token_id: int
    tokens_per_view: int
    side: int
    """Of a view, in pixels."""

    def prompt(self, seed: int, text_tokens: int) -> tuple[list[int], Tensor]:
        """Random ids with one random view behind the first."""
        generator = torch.Generator().manual_seed(seed)
        rows = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        most = min(rows, self.image_token_id) if self.image_token_id else rows
        text = torch.randint(1, most, (text_tokens,), generator=generator).tolist()
        pixels = torch.randn(1, 3, self.side, self.side, generator=generator)
        return [text[0], *[self.image_token_id] * self.tokens_per_view, *text[1:]], pixels

    def engine(self, **settings: Any) -> Engine:
        """A fresh engine that says as many tokens as it may."""
        return Engine(
            self.model,
            image_token_id=self.image_token_id,
            suppress_ids=[self.image_token_id],
            settings=EngineSettings(**settings),
        )

    def generate(
        self,
        prompts: Sequence[tuple[list[int], Tensor]],
        count: int,
        streamer: Stopwatch | None = None,
        *,
        static: bool = False,
    ) -> Tensor:
        """transformers' way, greedy: new ids [B, count] for prompts of equal length.

        static: with a cache of fixed size, for which transformers compiles its steps on CUDA.
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
                cache_implementation="static" if static else None,
            )
        return found[:, ids.shape[1] :]


def random_subject(
    size: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Subject:
    """A model with random weights: "tiny" for trying out, "7b" for the published sizes.

    `dtype`: float32 on a CPU, bfloat16 elsewhere, if not given.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if size == "7b":
        side, patch = 336, 14
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=side,
            patch_size=patch,
            projection_dim=768,
        )
        text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096)
    else:
        small: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
        }
        side, patch = 56, 14
        vision = CLIPVisionConfig(**small, num_hidden_layers=12, image_size=side, patch_size=patch)
        text = LlamaConfig(
            **small, vocab_size=512, num_hidden_layers=2, max_position_embeddings=1024
        )
    config = VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=text.vocab_size - 1
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = VipLlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return Subject(model.eval(), text.vocab_size - 1, (side // patch) ** 2, side)
