"""Tiny models, synthetic rows and a small training run, also as a script.

`python tiny.py '{"out": ..., ...}'` (or the same under torchrun) trains and exits; see `run`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    TrainerCallback,
    TrainingArguments,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.data.samples import BadRow, Sample

IMAGE, VIEW_TOKENS = 99, 4


def _text(dropout: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        attention_dropout=dropout,
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


def _randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("class_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def vip_llava(dropout: float = 0.0) -> Any:
    return _randomized(
        VipLlavaForConditionalGeneration(
            VipLlavaConfig(
                vision_config=_vision(), text_config=_text(dropout), image_token_index=IMAGE
            )
        )
    )


def llava(dropout: float = 0.0) -> Any:
    return _randomized(
        LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=_vision(), text_config=_text(dropout), image_token_index=IMAGE
            )
        )
    )


class Rows:
    """Rows of 8 to 19 text tokens, two of three with an image that differs in each epoch."""

    def __init__(self, count: int, bad: tuple[int, ...] = (), seed: int = 0) -> None:
        self.count, self.bad, self.seed, self.epoch = count, bad, seed, -1

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample | BadRow:
        if index in self.bad:
            return BadRow("rows.json", str(index), "spoiled")
        generator = torch.Generator().manual_seed(self.seed + 1000 * index)
        length = 8 + index * 7 % 12
        ids = torch.randint(1, 90, (length,), generator=generator).tolist()
        pixels = None
        if index % 3:
            ids = ids[:1] + [IMAGE] * VIEW_TOKENS + ids[1:]
            drawn = torch.Generator().manual_seed(self.seed + 1000 * index + self.epoch)
            pixels = torch.randn(1, 3, 28, 28, generator=drawn)
        answer = 2 + index % 5
        labels = [-100] * (len(ids) - answer) + ids[len(ids) - answer :]
        return Sample(str(index), ids, labels, pixels)


def padded(mixed: Sequence[Sample | BadRow]) -> dict[str, Any]:
    """A collator of its own, so that the trainer's tests do not depend on those of `data`."""
    bad = [row for row in mixed if isinstance(row, BadRow)]
    rows = [row for row in mixed if isinstance(row, Sample)]
    if not rows:
        return {"bad": bad, "num_items": 0}
    width = max(len(row.input_ids) for row in rows)
    pixels = [row.pixel_values for row in rows if row.pixel_values is not None]
    gaps = [width - len(row.input_ids) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    labels = torch.tensor([row.labels + [-100] * gap for row, gap in pairs])
    return {
        "input_ids": torch.tensor([row.input_ids + [0] * gap for row, gap in pairs]),
        "attention_mask": torch.tensor(
            [[1] * len(row.input_ids) + [0] * gap for row, gap in pairs]
        ),
        "labels": labels,
        "num_items": int((labels[:, 1:] != -100).sum()),
        "pixel_values": torch.cat(pixels) if pixels else None,
        "bad": bad,
    }


class Kill(TrainerCallback):
    """Kills the process with SIGKILL after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def arguments(out: Path, **options: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_steps": 3,
        "save_total_limit": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return TrainingArguments(**{**settings, **options})


def trainer(out: Path, **options: Any) -> Any:
    """A trainer for 20 rows in batches of 2; further options are TrainingArguments."""
    from vip_llava.data.failures import Failures
    from vip_llava.training.dataloader import ShuffledBatches
    from vip_llava.training.parallel import parallel_arguments
    from vip_llava.training.param_groups import set_trainable
    from vip_llava.training.trainer import RowTrainer

    torch.manual_seed(0)
    model = options.pop("model", None) or vip_llava(options.pop("dropout", 0.0))
    set_trainable(model, options.pop("parts", ("projector", "language")))
    bad = tuple(options.pop("bad", ()))
    kill = options.pop("kill", None)
    own = {key: options.pop(key) for key in ("projector_lr",) if key in options}
    failures = Failures(options.pop("limit", 0))
    rows = Rows(options.pop("rows", 20), bad)
    checkpointing = options.pop("checkpointing", False)
    options |= parallel_arguments(options.pop("parallel", "ddp"), checkpointing=checkpointing)
    args = arguments(out, **options)
    return RowTrainer(
        model,
        args,
        dataset=rows,
        collator=padded,
        batches=ShuffledBatches(len(rows), args.per_device_train_batch_size, seed=5),
        failures=failures,
        callbacks=[Kill(kill)] if kill else [],
        **own,
    )


def run(settings: dict[str, Any]) -> None:
    """Train in `out`. "resume" resumes; "kill" kills the process after that step."""
    out, resume = Path(settings.pop("out")), settings.pop("resume", None)
    trainer(out, **settings).train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    from vip_llava.training import dist_utils

    run(json.loads(sys.argv[1]))
    dist_utils.destroy_process_group()
    # Threads of the process group that are left could abort the process at exit.
    left = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    if "fsdp2" not in sys.argv[1]:
        assert "pt_gloo_runloop" not in left, left
