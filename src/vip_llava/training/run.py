"""A whole run on rows: from a recipe to a folder with the trained model.

Puts the parts together and does nothing by itself: start (`starting`), what learns (`parts`,
`adapters`), rows (`feeding`), loop (`trainer`), reports (`logs`), result (`export`, `card`).

    OUT/                what `vip_llava.load` opens, with its model card and loss curve
    OUT/training/       recipe, metrics, checkpoints to go on from, rows that failed, answers
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from vip_llava.data.failures import Failures
from vip_llava.data.samples import Sample
from vip_llava.errors import DataError, RequestError
from vip_llava.training import dist_utils as together
from vip_llava.training.adapters import add_adapter, continue_adapter
from vip_llava.training.attention import use_packed_attention
from vip_llava.training.data_module import Feed, make_feed, open_rows, texts, with_features
from vip_llava.training.metrics import (
    Answers,
    MetricsFile,
    Progress,
    Question,
    Report,
    Reports,
    check_trackers,
    tracker_environment,
)
from vip_llava.training.parallel import parallel_arguments
from vip_llava.training.param_groups import choose_trainable
from vip_llava.training.recipes.model_init import Start, open_start
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.results.model_card import Outcome
from vip_llava.training.results.saving import finish
from vip_llava.training.resume.checkpoint_folder import last_complete
from vip_llava.training.trainer import RowTrainer
from vip_llava.training.vision import compile_layers

__all__ = ["WORK", "Result", "run"]

WORK = "training"
"""Folder of a run inside its result."""
FEATURES = "features"
"""Folder inside that for what a frozen encoder makes of the images."""


@dataclass(frozen=True, slots=True)
class Result:
    """Where a run ended."""

    folder: Path
    outcome: Outcome


def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Result:
    """Train by a recipe and write the result into `out`. Every process of a run calls it.

    Args:
        resume: go on from the last whole checkpoint in `out`, from the start where there is none.
        device: "cpu" to leave a GPU unused; the best one by default.
        progress: called as `progress(stage, done, total)`. report: gets each report's values.

    Raises:
        RequestError: `out` holds another run, or something that does not go together here.
        DataError: rows that can't be read, or more failed ones than allowed.
        CheckpointError: a start that can't be opened, a checkpoint of another run, a full disk.
        MissingExtraError: an optional library that the recipe asks for.
    """
    work = out / WORK
    again = _check(recipe, out, resume)
    check_trackers(recipe.log.to)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows = open_rows(recipe)
    args = _arguments(recipe, work, device)
    precision = _precision(recipe, args)
    with args.main_process_first(desc="opening the model"):
        start = open_start(
            recipe,
            work,
            dtype=_dtype(precision),
            device=_place(recipe, args),
            texts=texts(rows),
            progress=progress,
        )
    learned = prepare(recipe, start, args.device)
    feed = make_feed(recipe, rows, start.processor, args.world_size)
    args.gradient_accumulation_steps = feed.rounds
    usual = feed
    if recipe.data.feature_cache:
        # The first process stores, the others find all of it there.
        with args.main_process_first(desc="storing the encoder's outputs"):
            body: torch.nn.Module = start.model
            body.to(args.device)
            stored = partial(progress, "storing the encoder's outputs") if progress else None
            feed = with_features(
                feed, recipe, start.model, start.processor, work / FEATURES, stored
            )
    if together.rank() == 0:
        _note(recipe, work, args, precision, learned, len(rows))
    trainer = RowTrainer(
        start.model,
        args,
        dataset=feed.dataset,
        collator=feed.collator,
        batches=feed.batches,
        failures=Failures(recipe.data.max_failures, work),
        projector_lr=recipe.optimizer.projector_lr,
        tower_lr=recipe.optimizer.tower_lr,
        callbacks=[*_callbacks(recipe, work, usual, start, progress, report), *callbacks],
    )
    # transformers would print every report.
    trainer.remove_callback(PrinterCallback)
    done = trainer.train(resume_from_checkpoint=True if again else None)
    outcome = Outcome(
        result=kind_of_result(recipe, start),
        steps=int(trainer.state.global_step),
        rows=len(rows),
        loss=_last_loss(trainer.state.log_history, done.training_loss),
        learned=learned,
        failures=trainer.failures.report(),
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    finish(recipe, start, trainer, outcome, out, work, dtype=_dtype(precision))
    return Result(out, outcome)


def _check(recipe: Recipe, out: Path, resume: bool) -> bool:
    """Whether there is a checkpoint to go on from. Raises RequestError if `out` is taken."""
    if (out / "README.md").is_file():
        raise RequestError(f"{out} holds a finished run; name a new folder with --out")
    found = last_complete(out / WORK, deep=False)
    if found is not None and not resume:
        raise RequestError(
            f"{out} holds a run that did not end ({found.name}); go on with --resume, or name a "
            "new folder with --out"
        )
    return found is not None


def prepare(recipe: Recipe, start: Start, device: torch.device) -> dict[str, int]:
    """Put the adapter on, choose what learns, and give every weight its kind; in place.

    Returns how many numbers learn in each part.
    """
    model, settings = start.model, recipe.train.adapter
    if settings is not None:
        torch.manual_seed(recipe.seed)  # peft draws the adapter's start
        projector = "projector" in recipe.train.parts
        add_adapter(model, settings, projector=projector, device=device)
        if recipe.model.adapter is not None:
            continue_adapter(model, Path(recipe.model.adapter).expanduser())
        others = [part for part in recipe.train.parts if part != "projector"]
        learned = choose_trainable(model, others)
    else:
        learned = choose_trainable(model, recipe.train.parts)
    if recipe.train.weights == "float32":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if recipe.data.packing:
        use_packed_attention(model)
    if recipe.sharded:
        _name_units(model)
    if recipe.compile:
        compile_layers(model, dynamic=True)
    return learned


def _name_units(model: PreTrainedModel) -> None:
    """Of the layers that transformers names as units of sharding, keep those that the model has.

    It names CLIP's text half too, which no model here has, and accelerate refuses such a name.
    """
    owner: Any = model
    present = {type(module).__name__ for module in model.modules()}
    owner._no_split_modules = sorted(present & set(owner._no_split_modules or ()))


def _arguments(recipe: Recipe, work: Path, device: str | None) -> TrainingArguments:
    """transformers' settings; it starts the processes' connection, where there are several."""
    if device not in (None, "cpu", "cuda"):
        raise RequestError(
            f"--device {device}: cpu or cuda; choose among GPUs with CUDA_VISIBLE_DEVICES"
        )
    cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    optimizer, cuda = recipe.optimizer, torch.cuda.is_available() and not cpu
    precision = "float32" if cpu else recipe.precision
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
        lr_scheduler_type=_schedule(recipe),
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
        args._n_gpu = min(args.n_gpu, 1)  # never DataParallel: one process drives one device
    return args


def _schedule(recipe: Recipe) -> str:
    name = recipe.optimizer.schedule
    return "constant_with_warmup" if name == "constant" else name


def _parallel(recipe: Recipe) -> dict[str, Any]:
    """Settings of transformers for several processes; one alone shares nothing."""
    kind = recipe.parallel
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if kind == "none" or (alone and not kind.endswith("-offload")):
        kind = "ddp"
    return parallel_arguments(kind, checkpointing=recipe.activation_checkpointing)


def _precision(recipe: Recipe, args: TrainingArguments) -> str:
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"


def _dtype(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def _place(recipe: Recipe, args: TrainingArguments) -> torch.device:
    """Where weights are loaded to: the device, or memory where they get smaller or fewer first."""
    split = recipe.sharded and args.world_size > 1
    return torch.device("cpu") if split or recipe.quantized else args.device


def _note(
    recipe: Recipe,
    work: Path,
    args: TrainingArguments,
    precision: str,
    learned: Mapping[str, int],
    rows: int,
) -> None:
    """Write down what is run, so that a folder explains itself."""
    facts = {
        "recipe": recipe.resolved(),
        "devices": args.world_size,
        "device": str(args.device),
        "precision": precision,
        "rounds a step": args.gradient_accumulation_steps,
        "rows": rows,
        "learns": dict(learned),
    }
    work.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2) + "\n"
    (work / "run.json").write_text(text, encoding="utf-8")


def _callbacks(
    recipe: Recipe,
    work: Path,
    feed: Feed,
    start: Start,
    progress: Progress | None,
    report: Report | None,
) -> list[TrainerCallback]:
    found: list[TrainerCallback] = [MetricsFile(work, round(feed.rows_a_step))]
    found.append(Reports(progress, report))
    if recipe.log.samples:
        processor = start.processor
        found.append(
            Answers(
                _questions(feed, recipe.log.samples, processor.decode),
                processor.decode,
                work,
                recipe.log.samples_every,
                stop_ids=sorted(processor.stop_ids),
            )
        )
    return found


def _questions(feed: Feed, count: int, decode: Any) -> list[Question]:
    """`count` rows spread over the data; a row that can't be used is left out."""
    rows = len(feed.dataset)
    places = sorted({rows * number // count for number in range(count)})
    samples = [feed.dataset[place] for place in places]
    usable = [sample for sample in samples if isinstance(sample, Sample)]
    if not usable:
        raise DataError("none of the rows for log.samples can be used")
    return [Question.of(sample, decode) for sample in usable]


def kind_of_result(recipe: Recipe, start: Start) -> str:
    """What the run leaves: an adapter, a projector for its language model, or a whole model."""
    if recipe.train.adapter is not None:
        return "adapter"
    alone = recipe.train.parts == ("projector",) and start.projector_config is not None
    return "projector" if alone else "model"


def _last_loss(history: Sequence[Mapping[str, Any]], mean: float) -> float:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return float(losses[-1]) if losses else float(mean)
