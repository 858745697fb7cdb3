"""The training loop over rows: transformers' Trainer with an exact loss and exact resuming.

It differs from its base class in five points. The order of rows is a function of epoch and position
(`dataloader`). The loss is the mean over all supervised tokens of a step (all batches, all
processes). Bad rows are counted and never replaced. Parts of the model have their own learning
rates. Checkpoints are atomic, free of pickles and loadable by any number of processes (`resume`).

It does not know where rows come from, recipes or exports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from vip_llava.data.failures import Failures
from vip_llava.errors import CheckpointError, RequestError
from vip_llava.training import dist_utils
from vip_llava.training.dataloader import (
    CountingCollator,
    EpochBatches,
    RankBatchSampler,
    build_dataloader,
)
from vip_llava.training.losses import IGNORED_LABEL, patch_loss
from vip_llava.training.metrics import Throughput
from vip_llava.training.parallel import layer_class_names, require_fsdp2
from vip_llava.training.param_groups import param_groups, part_of, trainable_parameters, unwrap
from vip_llava.training.resume.checkpointing import SavedState, resolve_checkpoint, save_checkpoint
from vip_llava.training.resume.rng_state import get_rng_state, seed_all, set_rng_state
from vip_llava.training.resume.state_dict import (
    frozen_fingerprint,
    load_optimizer_state,
    load_trainable_state,
)
from vip_llava.training.vision import blank_image, patch_image_inputs

__all__ = ["RowTrainer"]

# Entries of a batch that are not arguments of the model's call.
_NOT_MODEL_INPUTS = ("bad", "rows", "tokens", "num_items", "features", "cached")


class _LoopEvents(TrainerCallback):
    """Forwards the start of the loop and of each epoch to the trainer."""

    def __init__(self, trainer: RowTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()


class RowTrainer(Trainer):
    """Trains a model whose trainable parts were set with `set_trainable`.

    Args:
        model: a LLaVA or VipLlava model, with or without peft adapters.
        args: transformers' settings. `save_total_limit` is the number of checkpoints to keep.
        dataset: `dataset[i]` returns a sample or a `BadRow`; `set_epoch(n)` sets the epoch.
        collator: samples and bad rows -> arguments of the model's call, `labels` among them, and
            `num_items` and `bad`.
        batches: the order of rows; see `dataloader`.
        failures: counts bad rows and stops the run; without it no row may fail.
        projector_lr, tower_lr: learning rates of these parts; by default `args.learning_rate`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        dataset: Any,
        collator: Any,
        batches: EpochBatches,
        failures: Failures | None = None,
        projector_lr: float | None = None,
        tower_lr: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        if args.push_to_hub or args.load_best_model_at_end:
            raise RequestError(
                "RowTrainer supports neither push_to_hub nor load_best_model_at_end: "
                "export the trained model instead"
            )
        args.remove_unused_columns = False
        inner = unwrap(model)
        patch_loss(inner)
        patch_image_inputs(inner)
        if dist_utils.world_size() > 1 and dist_utils.rank() > 0:
            failures = Failures(failures.limit) if failures else None  # rank 0 writes the file
        self.failures = failures or Failures(0)
        self.throughput = Throughput()
        self.batches = batches
        self.rows = len(dataset)
        self.rates = {"projector_lr": projector_lr, "tower_lr": tower_lr}
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=CountingCollator(collator),
            callbacks=[_LoopEvents(self), *callbacks],
            **kwargs,
        )
        # The loss is already divided by the number of tokens of the whole step.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sampler: RankBatchSampler | None = None
        self._epoch = 0
        self._resumed: SavedState | None = None
        self._blank = blank_image(inner)
        trainable = [name for name, _ in trainable_parameters(model)]
        self._language_trainable = any(part_of(name) == "language" for name in trainable)
        self.base_fingerprint: str | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """As in the base class, but FSDP2 is never skipped silently."""
        plugin = self.args.fsdp_plugin_args
        if plugin is not None:
            model: Any = self.model
            names = ",".join(layer_class_names(unwrap(model)))
            plugin.setdefault("transformer_cls_names_to_wrap", names)
        super().create_accelerator_and_postprocess()
        require_fsdp2(self.accelerator, plugin)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    # --- Data ---------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The data loader of this rank."""
        if self._sampler is None:
            rank, world_size = dist_utils.rank(), dist_utils.world_size()
            self._sampler = RankBatchSampler(self.batches, rank, world_size)
        return build_dataloader(
            self.train_dataset,
            self._sampler,
            self.data_collator,
            workers=self.args.dataloader_num_workers,
            pin=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def begin(self) -> None:
        """At the start of the loop: restore the state that the base class keeps to itself."""
        accumulation = self.args.gradient_accumulation_steps
        assert self._sampler is not None
        steps = max(-(-len(self._sampler) // accumulation), 1)
        self._epoch = self.state.global_step // steps
        saved = self._resumed
        if saved is None:
            if dist_utils.rank() > 0:  # so that ranks draw different dropout masks
                seed_all(self.args.seed, dist_utils.rank())
            return
        self.failures.restore(saved.state["failures"])
        own = saved.of_rank(dist_utils.rank(), dist_utils.world_size())
        if own is not None:
            self._tr_loss.fill_(own["loss"])
            self._globalstep_last_logged = own["logged_at"]

    def begin_epoch(self) -> None:
        """Set the sampler to the epoch that begins."""
        assert self._sampler is not None
        self._sampler.set_epoch(self._epoch)
        self._epoch += 1

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The batches of a step, and the number of its supervised tokens over all processes.

        Raises DataError, in all processes, if more rows failed than allowed.
        """
        began = time.perf_counter()
        found = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        waited = time.perf_counter() - began
        bad = [row for batch in found for row in batch["bad"]]
        counts = [sum(int(each[key]) for each in found) for key in ("num_items", "rows", "tokens")]
        items, rows, tokens, failed = dist_utils.all_reduce_ints([*counts, len(bad)], device)
        self.throughput.add(rows, tokens, waited)
        self.failures.seen(rows)
        if failed:
            own = [[row.where, row.id, row.reason] for row in bad]
            for each in dist_utils.all_gather_json(own, device):
                for where, name, reason in each:
                    self.failures.add(where, name, reason)
        return found, items

    # --- Optimization -------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimizer over the trainable parts, each with its learning rate."""
        if self.optimizer is None:
            owner: Any = model or self.model
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, owner)
            lr, decay = self.args.learning_rate, self.args.weight_decay
            groups = param_groups(owner, lr=lr, weight_decay=decay, **self.rates)
            self.optimizer = cls(groups, **options)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """This batch's share of the step's mean loss, times the number of processes.

        Gradients are averaged over processes; the factor makes their average the exact mean.
        """
        batch = {key: value for key, value in inputs.items() if key not in _NOT_MODEL_INPUTS}
        if "features" in inputs:
            images = {"features": inputs["features"], "pixels": inputs.get("pixel_values")}
            images = {key: value for key, value in images.items() if value is not None}
            batch["pixel_values"] = {**images, "cached": inputs["cached"]}
        if "input_ids" not in batch:
            batch |= self._unsupervised_batch()
        if batch.get("pixel_values") is None:
            batch.pop("pixel_values", None)
            # With a frozen language model only the projector gives the loss a graph.
            needs_projector = dist_utils.world_size() > 1 or not self._language_trainable
            if model.training and needs_projector:
                batch["pixel_values"] = {"blank": self._blank}
        items = num_items_in_batch if model.training else None
        outputs = model(**batch, num_items_in_batch=items)
        loss = outputs["loss"] * (dist_utils.world_size() if model.training else 1)
        return (loss, outputs) if return_outputs else loss

    def _unsupervised_batch(self) -> dict[str, Tensor]:
        """A row without supervised tokens, for a rank that has no rows left in a step."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.args.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.full_like(ids, IGNORED_LABEL),
        }

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in the base class; 0 for a batch without rows."""
        if "input_ids" not in inputs:
            return 0
        return int(super().floating_point_ops(inputs))

    # --- Saving and resuming ------------------------------------------------------------------

    # Without the hyper-parameter search of the base class's signature.
    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train to the end, from a checkpoint folder or, with True, from the latest checkpoint.

        Raises:
            CheckpointError: no complete checkpoint, or one of another run: different rows, order,
                trainable parts or base model.
            DataError: more rows failed than allowed.
        """
        model: Any = self.model
        self._resumed = None
        if not self.is_deepspeed_enabled:
            own = frozen_fingerprint(model)
            self.base_fingerprint = dist_utils.broadcast_json(own, self.args.device)
        run = Path(str(self.args.output_dir))
        folder = resolve_checkpoint(resume_from_checkpoint, run, self.args.device)
        if folder is not None:
            self._resumed = SavedState.read(folder)
            self._resumed.check(self.identity())
        path = None if folder is None else str(folder)
        return super().train(resume_from_checkpoint=path, **kwargs)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to resume exactly."""
        return {
            "rows": self.rows,
            "batches_a_step": dist_utils.world_size() * self.args.gradient_accumulation_steps,
            "order": str(getattr(self.batches, "identity", type(self.batches).__name__)),
            "base": self.base_fingerprint,
        }

    def rank_state(self) -> dict[str, Any]:
        """The state of this rank that a checkpoint holds: generators and the loss not yet logged."""
        return {
            "random": get_rng_state(),
            "loss": self._tr_loss.item(),
            "logged_at": self._globalstep_last_logged,
        }

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.store_flos()
        save_checkpoint(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        owner: Any = model or self.model
        load_trainable_state(owner, Path(resume_from_checkpoint) / "model.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved, path = self._resumed, Path(checkpoint) / "optimizer.safetensors"
        load_optimizer_state(self.optimizer, self.model_wrapped, path, saved.state["groups"])
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(saved.state["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self._resumed is not None and self._resumed.state["scaler"]:
            scaler.load_state_dict(self._resumed.state["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        rank, world_size = dist_utils.rank(), dist_utils.world_size()
        own = self._resumed.of_rank(rank, world_size)
        if own is None:  # another number of processes: new seeds, but reproducible ones
            seed_all(self.args.seed, self.state.global_step, rank, world_size)
        else:
            set_rng_state(own["random"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Not supported: a checkpoint holds the trainable weights, and whole models are exported.

        Raises CheckpointError always.
        """
        raise CheckpointError("RowTrainer does not save whole models: export the trained model")
