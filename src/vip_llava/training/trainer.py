"""The training loop over rows: transformers' Trainer with an exact loss and an exact resume.

What differs from its base: the order of rows is a function of epoch and position (`loader`), the
loss is the mean over all supervised tokens of a step (all batches, all processes), rows that failed
are counted and never replaced, parts have rates of their own, and checkpoints are whole or absent
(`checkpoints`), without pickles, readable by any number of processes.

It does not know where rows come from, what a recipe is, or how models are exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from vip_llava.data.failures import Failures
from vip_llava.errors import CheckpointError, RequestError
from vip_llava.training import dist_utils as together
from vip_llava.training.losses import compute_loss_inside
from vip_llava.training.parallel import layer_classes, share_for_certain
from vip_llava.training.param_groups import bare, learning, optimizer_groups, part_of
from vip_llava.training.resume.checkpoint_folder import Disk
from vip_llava.training.dataloader import Batches, Collate, RankBatches, row_loader
from vip_llava.training.resume.rng_state import seed_apart, set_random_state
from vip_llava.training.resume.checkpointing import Saved, chosen_checkpoint, save_checkpoint
from vip_llava.training.resume.state_dict import frozen_fingerprint, load_learned, load_optimizer
from vip_llava.training.vision import blank_view, read_views

__all__ = ["RowTrainer"]

_NOT_FOR_THE_MODEL = ("bad", "rows", "num_items", "features", "cached")


class _Loop(TrainerCallback):
    """Tells the trainer where its loop is."""

    def __init__(self, trainer: RowTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()


class RowTrainer(Trainer):
    """Trains a model whose parts were chosen with `choose_trainable`.

    Args:
        model: a LLaVA or VipLlava model, with peft's adapters around it or not.
        args: transformers' settings. `save_total_limit` is how many checkpoints stay (None: all).
        dataset: `dataset[i]` gives a sample or a `BadRow`; `set_epoch(n)`, if there, is called.
        collator: samples -> tensors for the model's call, `labels` and `num_items` among them.
        batches: the order of rows; see `loader`.
        failures: what counts bad rows and stops the run; none may fail without it.
        projector_lr, tower_lr: rates of these parts where they differ from `args.learning_rate`.
        disk: what checkpoints are written with; for tests.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        dataset: Any,
        collator: Any,
        batches: Batches,
        failures: Failures | None = None,
        projector_lr: float | None = None,
        tower_lr: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        disk: Disk | None = None,
        **kwargs: Any,
    ) -> None:
        if args.push_to_hub or args.load_best_model_at_end:
            raise RequestError("RowTrainer neither pushes nor goes back: export the model yourself")
        args.remove_unused_columns = False
        inner = bare(model)
        compute_loss_inside(inner)
        read_views(inner)
        if together.world() > 1 and together.rank() > 0:
            failures = Failures(failures.limit) if failures else None  # one process writes them
        self.failures = failures or Failures(0)
        self.batches = batches
        self.rows = len(dataset)
        self.rates = {"projector_lr": projector_lr, "tower_lr": tower_lr}
        self.disk = disk
        self._collate = Collate(collator)
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=self._collate,
            callbacks=[_Loop(self), *callbacks],
            **kwargs,
        )
        # The loss comes out divided by the tokens of the whole step.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._order: RankBatches | None = None
        self._epoch = 0
        self._resumed: Saved | None = None
        self._blank = blank_view(inner)
        self._words_learn = any(part_of(name) == "language" for name, _ in learning(model))
        self.base_fingerprint: str | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does, but FSDP2 is never left out in silence."""
        plugin = self.args.fsdp_plugin_args
        if plugin is not None:
            model: Any = self.model
            plugin.setdefault("transformer_cls_names_to_wrap", ",".join(layer_classes(bare(model))))
        super().create_accelerator_and_postprocess()
        share_for_certain(self.accelerator, plugin)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    # --- Data ---------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of this process' rows."""
        if self._order is None:
            self._order = RankBatches(self.batches, together.rank(), together.world())
        return row_loader(
            self.train_dataset,
            self._order,
            self._collate,
            workers=self.args.dataloader_num_workers,
            pin=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def begin(self) -> None:
        """At the start of the loop: bring back what it keeps in its own variables."""
        accumulation = self.args.gradient_accumulation_steps
        assert self._order is not None
        steps = max(-(-len(self._order) // accumulation), 1)
        self._epoch = self.state.global_step // steps
        saved = self._resumed
        if saved is None:
            if together.rank() > 0:  # processes shall not drop out the same positions
                seed_apart(self.args.seed, together.rank())
            return
        self.failures.restore(saved.state["failures"])
        mine = saved.of_rank(together.rank(), together.world())
        if mine is not None:
            self._tr_loss.fill_(mine["loss"])
            self._globalstep_last_logged = mine["logged_at"]

    def begin_epoch(self) -> None:
        """Choose the order of the epoch that begins."""
        assert self._order is not None
        self._order.set_epoch(self._epoch)
        self._epoch += 1

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The batches of a step, and how many supervised tokens the step has in all processes.

        Raises DataError, in all processes alike, where more rows failed than may.
        """
        found = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        bad = [row for batch in found for row in batch["bad"]]
        rows = sum(batch["rows"] for batch in found)
        items = sum(int(batch["num_items"]) for batch in found)
        items, rows, failed = together.sum_numbers([items, rows, len(bad)], device)
        self.failures.seen(rows)
        if failed:
            mine = [[row.where, row.id, row.reason] for row in bad]
            for each in together.gather_json(mine, device):
                for where, name, reason in each:
                    self.failures.add(where, name, reason)
        return found, items

    # --- Learning -----------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimizer over the parts that learn, each with its rate."""
        if self.optimizer is None:
            owner: Any = model or self.model
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, owner)
            lr, decay = self.args.learning_rate, self.args.weight_decay
            groups = optimizer_groups(owner, lr=lr, weight_decay=decay, **self.rates)
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

        Gradients are averaged over processes, so that the product gives the exact mean.
        """
        batch = {key: value for key, value in inputs.items() if key not in _NOT_FOR_THE_MODEL}
        if "features" in inputs:
            views = {"features": inputs["features"], "pixels": inputs.get("pixel_values")}
            views = {key: value for key, value in views.items() if value is not None}
            batch["pixel_values"] = {**views, "cached": inputs["cached"]}
        if "input_ids" not in batch:
            batch |= self._nothing()
        if batch.get("pixel_values") is None:
            batch.pop("pixel_values", None)
            # Without words that learn, only this gives the loss a graph.
            if model.training and (together.world() > 1 or not self._words_learn):
                batch["pixel_values"] = {"blank": self._blank}
        items = num_items_in_batch if model.training else None
        outputs = model(**batch, num_items_in_batch=items)
        loss = outputs["loss"] * (together.world() if model.training else 1)
        return (loss, outputs) if return_outputs else loss

    def _nothing(self) -> dict[str, Tensor]:
        """A row without any supervised token, where a process has no row left in a step."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.args.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.full_like(ids, -100),
        }

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As transformers counts them; none for a batch without rows."""
        if "input_ids" not in inputs:
            return 0
        return int(super().floating_point_ops(inputs))

    # --- Saving and resuming ------------------------------------------------------------------

    # The search for hyper-parameters, which the base class takes too, is left out.
    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train to the end. Resume from a folder, or with True from the last whole checkpoint.

        Raises:
            CheckpointError: there is none, it is not whole, or it belongs to another run: other
                rows, another order, other parts, another base model.
            DataError: more rows failed than may.
        """
        model: Any = self.model
        self._resumed = None
        if not self.is_deepspeed_enabled:
            own = frozen_fingerprint(model)
            self.base_fingerprint = together.share_json(own, self.args.device)
        run = Path(str(self.args.output_dir))
        folder = chosen_checkpoint(resume_from_checkpoint, run, self.args.device)
        if folder is not None:
            self._resumed = Saved.read(folder)
            self._resumed.check(self.identity())
        path = None if folder is None else str(folder)
        return super().train(resume_from_checkpoint=path, **kwargs)

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to go on exactly."""
        return {
            "rows": self.rows,
            "batches_a_step": together.world() * self.args.gradient_accumulation_steps,
            "order": str(getattr(self.batches, "identity", type(self.batches).__name__)),
            "base": self.base_fingerprint,
        }

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.store_flos()
        save_checkpoint(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        owner: Any = model or self.model
        load_learned(owner, Path(resume_from_checkpoint) / "model.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved, path = self._resumed, Path(checkpoint) / "optimizer.safetensors"
        load_optimizer(self.optimizer, self.model_wrapped, path, saved.state["groups"])
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(saved.state["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self._resumed is not None and self._resumed.state["scaler"]:
            scaler.load_state_dict(self._resumed.state["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        mine = self._resumed.of_rank(together.rank(), together.world())
        if mine is None:  # another number of processes: fresh, but the same each time
            seed_apart(self.args.seed, self.state.global_step, together.rank(), together.world())
        else:
            set_random_state(mine["random"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Not here: a checkpoint holds what learns, and a whole model is exported.

        Raises CheckpointError always.
        """
        raise CheckpointError("save_model: export the trained model instead")
