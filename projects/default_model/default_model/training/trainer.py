"""Trains tower, projector and language model together on batches of marked scenes.

It uses one device. Worker processes make complete batches (`scenes.mixture`) with a constant shape
for each kind, so that code is compiled once per kind. It does not know where data or weights are,
and prints nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from default_model.scenes.mention_labels import IGNORED
from default_model.scenes.mixture import RegionMixture
from default_model.scenes.mixture_config import VIEWS
from default_model.training.param_groups import param_groups, set_trainable, start_from
from default_model.training.recipe import StageRecipe
from vip_llava.errors import RequestError
from vip_llava.models.default.build import save_trained, trained_state

Report = Callable[[dict[str, Any]], None]
"""Called every `report_every` steps with step, rows, seconds, losses and the kind of batch."""


class Batches(Dataset[dict[str, Any]]):
    """Batch `first + i` of a mixture as item i."""

    def __init__(self, mix: RegionMixture, first: int, count: int) -> None:
        self.mix, self.first, self.count = mix, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        made = self.mix.batch(self.first + index)
        return {k: v if isinstance(v, str) else torch.from_numpy(v) for k, v in made.items()}


class RegionTrainer:
    """The model, its optimizer and the moving average of its weights."""

    def __init__(
        self,
        model: Any,
        mix: RegionMixture,
        settings: StageRecipe,
        device: str,
        *,
        compiled: bool,
        start: Sequence[Path] = (),
    ) -> None:
        """model: a VipLlava with float32 weights; it is changed in place. device: "cuda" or "cpu".

        compiled: compile the tower and the decoder layers. start: folders of trained weights to
        start from (the mean of several), with a new optimizer. Raises CheckpointError if they do
        not fit.
        """
        self.model, self.mix, self.settings, self.device = model, mix, settings, device
        set_trainable(model, settings)
        self.classifier = nn.Linear(model.config.text_config.hidden_size, len(mix.classes))
        model.to(device).train()
        self.classifier.to(device)
        model.model.vision_tower.to(memory_format=torch.channels_last)
        if start:
            start_from(model, start, settings)
        self.groups = param_groups(model, self.classifier, settings)
        self.optimizer = torch.optim.AdamW(
            self.groups, betas=(0.9, 0.98), fused=device.startswith("cuda")
        )
        self.weights = [p for g in self.groups for p in g["params"]]
        self.averages = [p.detach().clone() for p in self.weights]
        if settings.mean_with_start and not start:
            raise RequestError("mean_with_start needs weights to start from")
        self.started = [p.detach().clone() for p in self.weights if settings.mean_with_start]
        self.tower_rows = max(mix.settings.rows[k] * VIEWS[k] for k in mix.settings.rows)
        if compiled:
            # Shapes are constant for each kind of batch; code for dynamic shapes would be slower.
            model.model.vision_tower.compile(dynamic=False)
            for layer in model.model.language_model.layers:
                layer.compile(dynamic=False)
        self.mean = torch.tensor(mix.processor.geometry.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(mix.processor.geometry.std, device=device).view(1, 3, 1, 1)

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Answer, class and naming loss of a batch on the device: means, in nats."""
        views = batch["views"]
        rows, count, side = views.shape[:3]
        pixels = views.reshape(rows * count, side, side, 3).permute(0, 3, 1, 2)
        pixels = (pixels.float().div_(255) - self.mean) / self.std
        inner, ids = self.model.model, batch["input_ids"]
        # Pad with blank views to a constant number, so that the tower is compiled once.
        pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, self.tower_rows - len(pixels)))
        tower = inner.vision_tower(pixels.contiguous(memory_format=torch.channels_last))
        features = inner.multi_modal_projector(tower.hidden_states[0][: rows * count, 1:])
        embeds = inner.get_input_embeddings()(ids).to(features.dtype)
        places = (ids == self.model.config.image_token_index).unsqueeze(-1)
        embeds = embeds.masked_scatter(places, self._dropped(features, count))
        hidden = inner.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        answer = self._answer_loss(hidden, batch["labels"])
        if count < 2:
            return answer, answer.new_zeros(()), answer.new_zeros(())
        focal = features.view(rows, count, *features.shape[1:])[:, 1:, -1]
        classes = F.cross_entropy(
            self.classifier(focal).float().flatten(0, 1),
            batch["classes"].flatten(),
            label_smoothing=self.settings.smoothing,
        )
        # Only rows with several marks have mention labels.
        several = count > 2 and self.settings.naming > 0
        named = self._answer_loss(hidden, batch["names"]) if several else answer.new_zeros(())
        return answer, classes, named

    def _dropped(self, features: Tensor, views: int) -> Tensor:
        """Features [N, K, C] with random tokens, and random whole-image views, set to 0."""
        s = self.settings
        keep = torch.rand(features.shape[:2], device=features.device) >= s.drop_token
        if views > 1:
            keep.view(-1, views, features.shape[1])[:, 0] &= (
                torch.rand(len(features) // views, 1, device=features.device) >= s.drop_view
            )
        return features * keep.unsqueeze(-1)

    def _answer_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean over supervised tokens; the weight of a row is the root of its answer's length."""
        targets = labels[:, 1:]
        chosen = targets != IGNORED
        logits = self.model.lm_head(hidden[:, :-1][chosen]).float()
        loss = F.cross_entropy(
            logits, targets[chosen], reduction="none", label_smoothing=self.settings.smoothing
        )
        weight = chosen.sum(1, keepdim=True).clamp(min=1).float().rsqrt().expand_as(chosen)[chosen]
        return (loss * weight).sum() / weight.sum()

    def step(self, batch: dict[str, Any], number: int) -> dict[str, float | Tensor]:
        """One optimizer step. Returns the losses as tensors, without waiting for the device."""
        share = self._rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
            answer, classes, named = self.losses(batch)
        loss = answer + self.settings.auxiliary * classes + self.settings.naming * named
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.settings.average, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        return {
            "loss": answer.detach(),
            "class_loss": classes.detach(),
            "naming_loss": named.detach(),
            "norm": norm.detach(),
        }

    def _rate(self, number: int) -> float:
        s = self.settings
        if number < s.warmup:
            return (number + 1) / s.warmup
        done = (number - s.warmup) / max(s.steps - s.warmup, 1)
        return s.final + (1 - s.final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def run(
        self, out: Path, *, seconds: float = math.inf, report: Report | None = None
    ) -> list[dict[str, Any]]:
        """Run all steps, or as many as fit into `seconds`, and save the averaged weights to `out`.

        Returns the reports, which are also written to `log.json` there.
        """
        out.mkdir(parents=True, exist_ok=True)
        log: list[dict[str, Any]] = []
        started, rows, waited, number = time.monotonic(), 0, 0.0, -1
        stream = self._stream()
        for number in range(self.settings.steps):
            asked = time.monotonic()
            batch = next(stream)
            waited += time.monotonic() - asked
            rows += len(batch["input_ids"])
            losses = self.step(batch, number)
            over = time.monotonic() - started > seconds
            last = over or number == self.settings.steps - 1
            if last or number % self.settings.report_every == 0:
                values = {k: float(v) for k, v in losses.items()}
                times = {"seconds": time.monotonic() - started, "waited_for_data": waited}
                log.append({"step": number, "rows": rows, **times, **values, "kind": batch["kind"]})
                if report is not None:
                    report(log[-1])
            if self.settings.save_every and (number + 1) % self.settings.save_every == 0:
                self.save(out, number + 1)
            if over:
                break
        self.save(out, number + 1)
        (out / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        return log

    def _stream(self) -> Iterator[dict[str, Any]]:
        """Batches on the device; their content does not depend on the number of workers."""
        workers = min(self.settings.workers, os.cpu_count() or 1)
        cuda = self.device.startswith("cuda")
        loader = DataLoader(
            Batches(self.mix, 0, self.settings.steps),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=cuda,
            multiprocessing_context="fork" if workers else None,
        )
        for batch in loader:
            yield {
                k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v
                for k, v in batch.items()
            }

    def save(self, out: Path, steps: int) -> None:
        """Save the averaged weights in the format of `models.default.build.save_trained`."""
        averages = self.averages
        if self.started:
            pairs = zip(averages, self.started, strict=True)
            averages = [torch.lerp(mine, start, 0.5) for mine, start in pairs]
        with torch.no_grad():
            kept = [p.detach().clone() for p in self.weights]
            for weight, average in zip(self.weights, averages, strict=True):
                weight.copy_(average)
            state = trained_state(self.model, whole=not self.settings.lora_rank)
            scale = self.settings.lora_alpha / max(self.settings.lora_rank, 1)
            facts = {"steps": steps, "settings": self.settings.model_dump()}
            save_trained(state, out, lora_scale=scale, metadata=facts, focal=self.mix.focal)
            for weight, value in zip(self.weights, kept, strict=True):
                weight.copy_(value)
