"""Metrics of a run: throughput, MFU, `metrics.jsonl`, progress and trackers.

Callbacks for transformers' Trainer. Nothing is printed: progress and reports go to functions of the
caller. Only rank 0 writes. It does not know recipes or what the model is trained on.
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
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from vip_llava.errors import DataError, MissingExtraError
from vip_llava.models.quantize import Int4Linear, Int8Linear

__all__ = [
    "METRICS",
    "MetricsLogger",
    "Progress",
    "ProgressReporter",
    "Report",
    "Throughput",
    "check_trackers",
    "flops_per_token",
    "peak_flops",
    "read_metrics",
    "tracker_environment",
]

Report = Callable[[dict[str, Any]], None]
Progress = Callable[[str, int, int], None]

METRICS = "metrics.jsonl"

# Dense bf16 FLOP/s by a part of the device's name, from the vendor's data sheets.
_PEAK_FLOPS = {"A100": 312e12, "L40S": 362e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingExtraError for a tracker that is not installed."""
    for name in names:
        # torch writes for tensorboard, but needs the package of the same name.
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"log.to names {name}, which is not installed: pip install {name} "
                "(metrics.jsonl is always written)"
            )


def tracker_environment(folder: Path) -> None:
    """Set the folders of trackers, unless the environment already sets them."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(folder))


class Throughput:
    """Rows and tokens over all processes, and seconds this process waited for data, per report."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new report."""
        self.rows = self.tokens = 0
        self.data_seconds = 0.0
        self._since = time.perf_counter()

    def add(self, rows: int, tokens: int, data_seconds: float) -> None:
        """Count a step."""
        self.rows += rows
        self.tokens += tokens
        self.data_seconds += data_seconds

    def report(self) -> dict[str, float]:
        """Rates since the last report; {} if no row was counted since."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rates = {
            "rows_per_second": round(self.rows / seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "data_seconds": round(self.data_seconds, 3),
        }
        found = rates if self.rows else {}
        self.reset()
        return found


def flops_per_token(model: PreTrainedModel) -> int:
    """FLOPs of a training step per token in the matrix products of the language model's layers.

    2 per weight forward, 2 for the gradient of the input, 2 more for a trainable weight. Attention
    scores, the head and the vision tower are not counted.
    """
    owner: Any = model
    flops = 0
    for layer in owner.get_decoder().modules():
        if isinstance(layer, nn.Linear | Int4Linear | Int8Linear):
            trainable = any(p.requires_grad for p in layer.parameters(recurse=False))
            flops += (6 if trainable else 4) * layer.in_features * layer.out_features
    return flops


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of a device; None for one that is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


class MetricsLogger(TrainerCallback):
    """Appends each report to `metrics.jsonl`, with step, seconds, throughput, MFU and memory.

    A resumed run first removes the lines behind the step that it resumes from, so that every step
    appears once.

    Args:
        flops_per_token: for the MFU (model FLOPs utilization); without it none is written.
    """

    def __init__(
        self, folder: Path, throughput: Throughput, flops_per_token: int | None = None
    ) -> None:
        self.path = folder / METRICS
        self.throughput, self.flops_per_token = throughput, flops_per_token
        self._began = 0.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._began = time.monotonic()
        self.throughput.reset()
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
        line["seconds"] = round(time.monotonic() - self._began, 3)
        if "loss" in logs:
            line |= self._rates(args)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _rates(self, args: TrainingArguments) -> dict[str, float]:
        rates = self.throughput.report()
        if not torch.cuda.is_available():
            return rates
        peak = peak_flops(args.device)
        if rates and peak and self.flops_per_token:
            used = rates["tokens_per_second"] * self.flops_per_token / args.world_size
            rates["mfu"] = round(used / peak, 4)
        return rates | {"memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3)}


def _plain(logs: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in logs.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without a truncated last line of a killed process.

    Raises DataError for any other line that is not a JSON object with a step.
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


class ProgressReporter(TrainerCallback):
    """Passes the progress of each step, and each report, to functions of the caller."""

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
