"""What a run tells while it goes: metrics.jsonl, progress, sample answers, other trackers.

Callbacks for transformers' Trainer. Nothing is printed: progress and reports go to functions that
the caller gives. Only the first process writes. It knows no recipes and no weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vip_llava.errors import DataError, MissingExtraError

__all__ = [
    "Answers",
    "MetricsFile",
    "Question",
    "Reports",
    "check_trackers",
    "read_metrics",
]

Report = Callable[[dict[str, Any]], None]
Progress = Callable[[str, int, int], None]

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"


def check_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtraError for a tracker that is not installed."""
    for name in names:
        # tensorboard is written through torch, which needs the package of the same name.
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"log.to names {name}, which is not installed: pip install {name} "
                "(metrics.jsonl is written in any case)"
            )


class MetricsFile(TrainerCallback):
    """Writes each report as a line of `metrics.jsonl`, with the step, the time and the rows so far.

    A resumed run first takes out what lies behind the step that it goes on from, so that every step
    is there once.
    """

    def __init__(self, folder: Path, rows_a_step: int) -> None:
        self.path = folder / METRICS
        self.rows_a_step = rows_a_step
        self._began = 0.0
        self._first = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._began, self._first = time.monotonic(), state.global_step
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = [m for m in read_metrics(self.path) if m["step"] <= state.global_step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
        partial.replace(self.path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, **_plain(logs)}
        seconds = time.monotonic() - self._began
        line["seconds"] = round(seconds, 3)
        done = state.global_step - self._first
        if done and "loss" in logs:
            line["rows_per_second"] = round(done * self.rows_a_step / max(seconds, 1e-9), 3)
            line.update(_memory())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _plain(logs: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in logs.items()}


def _memory() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {"memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3)}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; half a line at its end, of a process that was killed, is left out.

    Raises DataError for any other line that is no JSON object with a step.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            int(value["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not a JSON object with a step") from error
        found.append(value)
    return found


class Reports(TrainerCallback):
    """Hands progress of every step and every report to two functions of the caller."""

    def __init__(self, progress: Progress | None = None, report: Report | None = None) -> None:
        self.progress, self.report = progress, report
        self._loss = ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.progress is not None:
            self.progress(f"training{self._loss}", state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        plain = _plain(logs)
        if "loss" in plain:
            self._loss = f", loss {plain['loss']:.4f}"
        if self.report is not None:
            self.report({"step": state.global_step, **plain})


class Question:
    """A row to answer during the run: inputs of the model up to the answer, and the answer wanted."""

    def __init__(
        self, name: str, ids: Sequence[int], pixels: torch.Tensor | None, wanted: str
    ) -> None:
        self.name, self.ids, self.pixels, self.wanted = name, list(ids), pixels, wanted

    @classmethod
    def of(cls, sample: Any, decode: Callable[[Sequence[int]], str]) -> Question:
        """From a training sample: everything before its first supervised token is the question."""
        ids, labels = list(sample.input_ids), list(sample.labels)
        first = next(index for index, label in enumerate(labels) if label != -100)
        last = next((i for i in range(first, len(labels)) if labels[i] == -100), len(labels))
        return cls(sample.id, ids[:first], sample.pixel_values, decode(ids[first:last]))


class Answers(TrainerCallback):
    """Lets the model answer the same questions every so many steps, into `samples.jsonl`.

    Greedy, without touching any random state. Not for sharded models: one process alone can't run
    them.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        decode: Callable[[Sequence[int]], str],
        folder: Path,
        every: int,
        *,
        stop_ids: Sequence[int] = (),
        longest: int = 64,
    ) -> None:
        self.questions, self.decode, self.every = list(questions), decode, every
        self.path = folder / SAMPLES
        self.stop_ids, self.longest = list(stop_ids), longest

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self.write(kwargs["model"], state.global_step)

    def write(self, model: Any, step: int) -> None:
        """Answer all questions with the model as it is now."""
        lines = [
            {"step": step, "id": q.name, "wanted": q.wanted, "answer": self.answer(model, q)}
            for q in self.questions
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def answer(self, model: Any, question: Question) -> str:
        """The greedy answer to one question."""
        inner = getattr(model, "module", model)
        device = next(inner.parameters()).device
        was_training, caching = inner.training, inner.config.text_config.use_cache
        inner.eval()
        ids = torch.tensor([question.ids], device=device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if question.pixels is not None:
            inputs["pixel_values"] = question.pixels.to(device)
        try:
            with torch.no_grad(), _autocast(device, inner):
                made = inner.generate(
                    **inputs,
                    max_new_tokens=self.longest,
                    do_sample=False,
                    eos_token_id=self.stop_ids or None,
                    pad_token_id=self.stop_ids[0] if self.stop_ids else 0,
                )
        finally:
            inner.train(was_training)
            inner.config.text_config.use_cache = caching
        new = made[0, len(question.ids) :].tolist()
        return self.decode([token for token in new if token not in self.stop_ids])


def _autocast(device: torch.device, model: Any) -> Any:
    """Weights of two kinds (frozen ones narrow, learning ones wide) need one kind of computation."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    narrow = next((kind for kind in kinds if kind != torch.float32), torch.float32)
    enabled = len(kinds) > 1
    return torch.autocast(device.type, dtype=narrow if enabled else None, enabled=enabled)


def tracker_environment(folder: Path) -> None:
    """Where trackers put their files, unless the user said so before."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(folder))
