"""transformers' TrainingArguments for a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from vip_llava.errors import RequestError
from vip_llava.training.metrics import tracker_environment
from vip_llava.training.parallel import parallel_arguments
from vip_llava.training.recipes.recipe import Recipe

__all__ = ["compute_dtype", "loading_device", "training_arguments"]


def training_arguments(recipe: Recipe, work: Path, device: str | None) -> TrainingArguments:
    """The arguments of a run in the folder `work`; also starts the process group, if there is one.

    Raises RequestError for a `device` other than cpu and cuda.
    """
    if device not in (None, "cpu", "cuda"):
        raise RequestError(
            f"--device {device}: expected cpu or cuda; select GPUs with CUDA_VISIBLE_DEVICES"
        )
    cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    optimizer, cuda = recipe.optimizer, torch.cuda.is_available() and not cpu
    precision = "float32" if cpu else recipe.precision
    schedule = optimizer.schedule
    tracker_environment(work)
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=recipe.batch.per_device,
        learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        max_grad_norm=optimizer.clip,
        optim="adamw_torch_fused" if cuda else "adamw_torch",
        warmup_steps=optimizer.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        tf32=True if cuda else None,
        save_strategy="steps" if recipe.save.every else "no",
        save_steps=recipe.save.every or 1,
        save_total_limit=recipe.save.keep,
        logging_steps=recipe.log.every,
        logging_first_step=True,
        report_to=list(recipe.log.to) or "none",
        run_name=work.parent.name,
        seed=recipe.seed,
        dataloader_num_workers=recipe.data.workers,
        use_cpu=cpu,
        disable_tqdm=True,
        **_parallel(recipe),
    )
    if args.world_size == 1:
        args._n_gpu = min(args.n_gpu, 1)  # never DataParallel: one process uses one device
    return args


def _parallel(recipe: Recipe) -> dict[str, Any]:
    """A single process has nothing to shard, but it can offload."""
    strategy = recipe.parallel
    single = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if strategy == "none" or (single and not strategy.endswith("-offload")):
        strategy = "ddp"
    return parallel_arguments(strategy, checkpointing=recipe.activation_checkpointing)


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """The dtype of the forward and backward pass."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def loading_device(recipe: Recipe, args: TrainingArguments) -> torch.device:
    """Where weights are loaded: the CPU if they are sharded or quantized next, else the device."""
    sharded = recipe.sharded and args.world_size > 1
    return torch.device("cpu") if sharded or recipe.quantized else args.device
