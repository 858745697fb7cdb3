"""Answers to a few training rows during a run, written to `samples.jsonl`.

A callback for transformers' Trainer. It does not know recipes or how rows become samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vip_llava.data.samples import Sample
from vip_llava.training.losses import IGNORED_LABEL

__all__ = ["SampleAnswers", "SamplePrompt"]

Decode = Callable[[Sequence[int]], str]


class SamplePrompt:
    """The prompt of a training row: ids up to its first answer, images, and the expected answer."""

    def __init__(
        self, id: str, input_ids: Sequence[int], pixel_values: torch.Tensor | None, expected: str
    ) -> None:
        self.id, self.input_ids = id, list(input_ids)
        self.pixel_values, self.expected = pixel_values, expected

    @classmethod
    def of(cls, sample: Sample, decode: Decode) -> SamplePrompt:
        """Split a sample at its first supervised token."""
        ids, labels = list(sample.input_ids), list(sample.labels)
        first = next(n for n, label in enumerate(labels) if label != IGNORED_LABEL)
        rest = range(first, len(labels))
        last = next((n for n in rest if labels[n] == IGNORED_LABEL), len(labels))
        return cls(sample.id, ids[:first], sample.pixel_values, decode(ids[first:last]))


class SampleAnswers(TrainerCallback):
    """Generates greedy answers to the same prompts every `every` steps.

    Leaves all random states untouched. Not for sharded models, which rank 0 alone can't run.
    """

    def __init__(
        self,
        prompts: Sequence[SamplePrompt],
        decode: Decode,
        folder: Path,
        every: int,
        *,
        stop_ids: Sequence[int] = (),
        max_new_tokens: int = 64,
    ) -> None:
        self.prompts, self.decode, self.every = list(prompts), decode, every
        self.path = folder / "samples.jsonl"
        self.stop_ids, self.max_new_tokens = list(stop_ids), max_new_tokens

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self.write(kwargs["model"], state.global_step)

    def write(self, model: Any, step: int) -> None:
        """Append the answers of the current model to `samples.jsonl`."""
        lines = [
            {"step": step, "id": p.id, "wanted": p.expected, "answer": self.answer(model, p)}
            for p in self.prompts
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def answer(self, model: Any, prompt: SamplePrompt) -> str:
        """The greedy answer to one prompt."""
        inner = getattr(model, "module", model)
        device = next(inner.parameters()).device
        was_training, caching = inner.training, inner.config.text_config.use_cache
        inner.eval()
        ids = torch.tensor([prompt.input_ids], device=device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if prompt.pixel_values is not None:
            inputs["pixel_values"] = prompt.pixel_values.to(device)
        try:
            with torch.no_grad(), _autocast(device, inner):
                generated = inner.generate(
                    **inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    eos_token_id=self.stop_ids or None,
                    pad_token_id=self.stop_ids[0] if self.stop_ids else 0,
                )
        finally:
            inner.train(was_training)
            inner.config.text_config.use_cache = caching
        new = generated[0, len(prompt.input_ids) :].tolist()
        return self.decode([token for token in new if token not in self.stop_ids])


def _autocast(device: torch.device, model: Any) -> Any:
    """Autocast to the narrower dtype of a model with frozen bf16 and trainable float32 weights."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    narrow = next((dtype for dtype in dtypes if dtype != torch.float32), torch.float32)
    enabled = len(dtypes) > 1
    return torch.autocast(device.type, dtype=narrow if enabled else None, enabled=enabled)
