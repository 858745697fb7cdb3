"""A whole run: from a recipe to a folder with the trained model.

Assembles the other modules: the initial model (`recipes.model_init`), its trainable parts
(`param_groups`, `adapters`), rows (`data_module`), the loop (`trainer`), metrics and the result.

    OUT/                what `vip_llava.load` opens, with its model card and loss curve
    OUT/training/       recipe, metrics, checkpoints, failed rows, sample answers
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from vip_llava.data.failures import Failures
from vip_llava.data.samples import Sample
from vip_llava.errors import DataError, RequestError
from vip_llava.training import dist_utils
from vip_llava.training.adapters import add_adapter, load_adapter
from vip_llava.training.attention import use_packed_attention
from vip_llava.training.data_module import (
    DataModule,
    build_data_module,
    open_rows,
    row_texts,
    with_feature_cache,
)
from vip_llava.training.json_files import write_json
from vip_llava.training.metrics import (
    MetricsLogger,
    Progress,
    ProgressReporter,
    Report,
    check_trackers,
    flops_per_token,
)
from vip_llava.training.param_groups import set_trainable
from vip_llava.training.recipes.model_init import InitialModel, load_initial_model
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.results.model_card import RunSummary
from vip_llava.training.results.saving import save_result
from vip_llava.training.resume.checkpoint_folder import latest_checkpoint
from vip_llava.training.sample_answers import SampleAnswers, SamplePrompt
from vip_llava.training.trainer import RowTrainer
from vip_llava.training.training_args import compute_dtype, loading_device, training_arguments
from vip_llava.training.vision import compile_layers

__all__ = ["WORK", "run"]

WORK = "training"
"""Folder inside the result for everything that is not the trained model."""
FEATURES = "features"
"""Folder inside `WORK` for the feature cache."""


def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunSummary:
    """Train by a recipe and write the result into `out`. Every process of a run calls it.

    Args:
        resume: continue from the latest checkpoint in `out`; start if there is none.
        device: "cpu" or "cuda"; by default the best one.
        progress: called as `progress(stage, done, total)`. report: called with each report.

    Raises:
        RequestError: `out` holds another run, or the recipe does not fit this machine.
        DataError: unreadable row files, or more failed rows than allowed.
        CheckpointError: an initial model that can't be opened, a checkpoint of another run, a full
            disk.
        MissingExtraError: the recipe needs an optional library that is not installed.
    """
    work = out / WORK
    resumes = _check_folder(recipe, out, resume)
    check_trackers(recipe.log.to)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows = open_rows(recipe)
    args = training_arguments(recipe, work, device)
    dtype = compute_dtype(args)
    with args.main_process_first(desc="loading the model"):
        initial = load_initial_model(
            recipe,
            work,
            dtype=dtype,
            device=loading_device(recipe, args),
            texts=row_texts(rows),
            progress=progress,
        )
    trainable = prepare_model(recipe, initial.model, args.device)
    data = build_data_module(recipe, rows, initial.processor, args.world_size)
    args.gradient_accumulation_steps = data.accumulation
    samples = data.dataset
    if recipe.data.feature_cache:
        data = _cache_features(recipe, initial, data, work, args, progress)
    if dist_utils.rank() == 0:
        _write_run_facts(recipe, work, args, trainable, len(rows))
    trainer = RowTrainer(
        initial.model,
        args,
        dataset=data.dataset,
        collator=data.collator,
        batches=data.batches,
        failures=Failures(recipe.data.max_failures, work),
        projector_lr=recipe.optimizer.projector_lr,
        tower_lr=recipe.optimizer.tower_lr,
    )
    flops = flops_per_token(initial.model)
    trainer.add_callback(MetricsLogger(work, trainer.throughput, flops))
    trainer.add_callback(ProgressReporter(progress, report))
    if recipe.log.samples:
        trainer.add_callback(_sample_answers(recipe, initial, samples, work))
    for callback in callbacks:
        trainer.add_callback(callback)
    # transformers would print every report.
    trainer.remove_callback(PrinterCallback)
    output = trainer.train(resume_from_checkpoint=True if resumes else None)
    summary = RunSummary(
        result=result_kind(recipe, initial),
        steps=int(trainer.state.global_step),
        rows=len(rows),
        loss=_last_loss(trainer.state.log_history, output.training_loss),
        trainable=trainable,
        failures=trainer.failures.report(),
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    save_result(recipe, initial, trainer, summary, out, work, dtype=dtype)
    return summary


def _check_folder(recipe: Recipe, out: Path, resume: bool) -> bool:
    """Whether `out` holds a checkpoint to resume from. Raises RequestError if `out` is taken."""
    if (out / "README.md").is_file():
        raise RequestError(f"{out} holds a finished run; give a new folder with --out")
    found = latest_checkpoint(out / WORK, deep=False)
    if found is not None and not resume:
        raise RequestError(
            f"{out} holds an unfinished run ({found.name}); continue it with --resume, or give a "
            "new folder with --out"
        )
    return found is not None


def prepare_model(recipe: Recipe, model: PreTrainedModel, device: torch.device) -> dict[str, int]:
    """Add the adapter, freeze the other parts and set the dtypes of all weights; in place.

    Returns the number of trainable parameters of each part.
    """
    config = recipe.train.adapter
    if config is not None:
        torch.manual_seed(recipe.seed)  # peft initializes the adapter at random
        projector = "projector" in recipe.train.parts
        add_adapter(model, config, projector=projector, device=device)
        if recipe.model.adapter is not None:
            load_adapter(model, Path(recipe.model.adapter).expanduser())
        # With an adapter the projector is a copy that peft trains.
        others = [part for part in recipe.train.parts if part != "projector"]
        trainable = set_trainable(model, others)
    else:
        trainable = set_trainable(model, recipe.train.parts)
    if recipe.train.weights == "float32":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if recipe.data.packing:
        use_packed_attention(model)
    if recipe.sharded:
        _drop_absent_layer_classes(model)
    if recipe.compile:
        compile_layers(model, dynamic=True)
    return trainable


def _drop_absent_layer_classes(model: PreTrainedModel) -> None:
    """Keep only those of transformers' layer classes for sharding that the model contains.

    transformers also names a class of CLIP's text model, and accelerate refuses an absent class.
    """
    owner: Any = model
    present = {type(module).__name__ for module in model.modules()}
    owner._no_split_modules = sorted(present & set(owner._no_split_modules or ()))


def _cache_features(
    recipe: Recipe,
    initial: InitialModel,
    data: DataModule,
    work: Path,
    args: TrainingArguments,
    progress: Progress | None,
) -> DataModule:
    stage = "caching image features"
    report: Callable[[int, int], None] | None = partial(progress, stage) if progress else None
    # Rank 0 builds the cache; the other ranks find it complete.
    with args.main_process_first(desc=stage):
        body: torch.nn.Module = initial.model
        body.to(args.device)
        return with_feature_cache(
            data, recipe, initial.model, initial.processor, work / FEATURES, report
        )


def _write_run_facts(
    recipe: Recipe, work: Path, args: TrainingArguments, trainable: Mapping[str, int], rows: int
) -> None:
    """Write `run.json`: what exactly this run trains, and on what."""
    facts = {
        "recipe": recipe.resolved(),
        "devices": args.world_size,
        "device": str(args.device),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "accumulation steps": args.gradient_accumulation_steps,
        "rows": rows,
        "trainable": dict(trainable),
    }
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "run.json", facts)


def _sample_answers(
    recipe: Recipe, initial: InitialModel, dataset: Any, work: Path
) -> SampleAnswers:
    """The callback for `log.samples` rows, spread over the data; bad rows are skipped."""
    count, processor = recipe.log.samples, initial.processor
    numbers = sorted({len(dataset) * number // count for number in range(count)})
    samples = [dataset[number] for number in numbers]
    prompts = [
        SamplePrompt.of(sample, processor.decode)
        for sample in samples
        if isinstance(sample, Sample)
    ]
    if not prompts:
        raise DataError("none of the rows for log.samples is usable: run vip-llava data check")
    return SampleAnswers(
        prompts,
        processor.decode,
        work,
        recipe.log.samples_every,
        stop_ids=sorted(processor.stop_ids),
    )


def result_kind(recipe: Recipe, initial: InitialModel) -> str:
    """What the run exports: "adapter", "projector" (of a language model) or "model"."""
    if recipe.train.adapter is not None:
        return "adapter"
    alone = recipe.train.parts == ("projector",) and initial.projector_config is not None
    return "projector" if alone else "model"


def _last_loss(history: Sequence[Mapping[str, Any]], mean: float) -> float:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return float(losses[-1]) if losses else float(mean)
