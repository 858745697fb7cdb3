"""From a running trainer to a checkpoint folder and back: what is in it, and whether it fits.

`model.safetensors` and `optimizer.safetensors` (see `states`), `trainer_state.json` (transformers'
own: step, epoch, log), `state.json` (schedule, groups of parameters, counted failures, what the run
must have in common with the one that goes on) and `random.json` (each process' generators).

How a folder becomes whole is `checkpoints`' business. This module knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import ExportableState

from vip_llava.errors import CheckpointError
from vip_llava.training import dist_utils as together
from vip_llava.training.resume.checkpoint_folder import (
    NewCheckpoint,
    last_complete,
    new_checkpoint,
    problem,
    prune,
)
from vip_llava.training.resume.rng_state import random_state
from vip_llava.training.resume.state_dict import (
    as_safetensors,
    learned_state,
    optimizer_settings,
    optimizer_state,
)

__all__ = ["Saved", "chosen_checkpoint", "save_checkpoint"]


def chosen_checkpoint(
    wanted: str | Path | bool | None, run: Path, device: torch.device
) -> Path | None:
    """The folder to resume from: the one given, or with True the last whole one; all agree on it.

    Raises:
        CheckpointError: none is whole, or the given one is not.
    """
    if wanted is None or wanted is False:
        return None
    answer: list[str] = ["", ""]
    if together.rank() == 0:
        if wanted is True:
            found = last_complete(run)
            reason = "" if found else f"{run} holds no whole checkpoint"
            answer = [str(found), reason]
        else:
            reason = problem(Path(wanted)) or ""
            answer = [str(wanted), f"{wanted} is no whole checkpoint: {reason}" if reason else ""]
    path, reason = together.share_json(answer, device)
    if reason:
        raise CheckpointError(reason)
    return Path(path)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says besides its tensors."""

    folder: Path
    state: dict[str, Any]
    ranks: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Read `state.json` and `random.json`. Raises CheckpointError."""
        try:
            texts = [(folder / name).read_text("utf-8") for name in ("state.json", "random.json")]
            state, ranks = (json.loads(text) for text in texts)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is no checkpoint of this trainer: {error}") from error
        return cls(folder, state, ranks["ranks"])

    def of_rank(self, rank: int, world: int) -> dict[str, Any] | None:
        """A process' own state; None if the checkpoint is of another number of processes."""
        return self.ranks[rank] if len(self.ranks) == world else None

    def check(self, identity: dict[str, Any]) -> None:
        """Raises CheckpointError where the run that goes on differs from the one that was saved."""
        for key, now in identity.items():
            was = self.state["identity"].get(key)
            if was is None or now is None or was == now:
                continue
            hint = {
                "rows": "the data has another number of rows",
                "batches_a_step": "processes times accumulation must stay the same",
                "order": "the order of rows is made in another way",
                "base": "the frozen weights differ: another base model, or other parts to train",
            }.get(key, "")
            raise CheckpointError(
                f"{self.folder} can't go on exactly: {key} is {now!r} and was {was!r} ({hint})"
            )


def save_checkpoint(trainer: Any) -> None:
    """Write a whole checkpoint of a trainer's step, then remove old ones. All processes call it.

    Raises:
        CheckpointError: in all processes, where the disk refused in the one that writes.
    """
    device, args = trainer.args.device, trainer.args
    run, step = Path(args.output_dir), int(trainer.state.global_step)
    ranks = together.gather_json(_own_state(trainer), device)
    failure = ""
    try:
        with _place(run, step, trainer.disk) as new:
            _write(trainer, new, ranks)
        if new is not None and args.save_total_limit:
            prune(run, args.save_total_limit, disk=trainer.disk)
    except (CheckpointError, OSError) as error:
        failure = str(error)
        if together.world() == 1:
            raise
    failures = [reason for reason in together.gather_json(failure, device) if reason]
    if failures:
        raise CheckpointError(failures[0])


def _own_state(trainer: Any) -> dict[str, Any]:
    return {
        "random": random_state(),
        "loss": trainer._tr_loss.item(),
        "logged_at": trainer._globalstep_last_logged,
    }


@contextmanager
def _place(run: Path, step: int, disk: Any) -> Iterator[NewCheckpoint | None]:
    """The new folder in the process that writes, None in the others."""
    if together.rank() == 0:
        with new_checkpoint(run, step, disk) as new:
            yield new
    else:
        yield None


def _write(trainer: Any, new: NewCheckpoint | None, ranks: list[Any]) -> None:
    """All processes walk through the tensors; one of them writes.

    A disk that refuses must not keep the others waiting: the walk goes on, then the error is told.
    """
    refused: OSError | None = None
    model, optimizer = trainer.model_wrapped, trainer.optimizer
    state: dict[str, Any] = {"groups": [], "scheduler": trainer.lr_scheduler.state_dict()}
    if trainer.is_deepspeed_enabled:
        _write_deepspeed(trainer, new)
    else:
        files = {"model": learned_state(model), "optimizer": optimizer_state(optimizer, model)}
        for name, tensors in files.items():
            pieces = as_safetensors(tensors)
            if new is not None and refused is None:
                try:
                    new.write(f"{name}.safetensors", pieces)
                except OSError as error:
                    refused = error
            for _ in pieces:
                pass
        state["groups"] = optimizer_settings(optimizer, model)
    if refused is not None:
        raise refused
    if new is None:
        return
    scaler = getattr(trainer.accelerator, "scaler", None)
    state["scaler"] = None if scaler is None else scaler.state_dict()
    state["identity"] = trainer.identity()
    state["failures"] = trainer.failures.report()
    new.write_json("state.json", state)
    new.write_json("random.json", {"ranks": ranks})
    new.write_json("trainer_state.json", _trainer_state(trainer))


def _write_deepspeed(trainer: Any, new: NewCheckpoint | None) -> None:
    """DeepSpeed writes its own files (sharded, with pickles) into the same folder; untested."""
    step = int(trainer.state.global_step)
    folder = Path(trainer.args.output_dir) / f"checkpoint-{step}.unfinished"
    together.barrier()  # the folder is there
    trainer.model_wrapped.save_checkpoint(str(folder if new is None else new.folder))
    together.barrier()
    if new is not None:
        new.adopt()


def _trainer_state(trainer: Any) -> dict[str, Any]:
    """transformers' own state with its callbacks', as its `save_to_json` would write it."""
    state = trainer.state
    callbacks = [*trainer.callback_handler.callbacks, trainer.control]
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            name, own = type(callback).__name__, callback.state()
            if isinstance(state.stateful_callbacks.get(name), list):
                state.stateful_callbacks[name].append(own)
            else:
                state.stateful_callbacks[name] = own
    return asdict(state)
