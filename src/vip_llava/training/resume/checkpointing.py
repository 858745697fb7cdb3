"""Saving a running trainer as a checkpoint, and reading a checkpoint to resume from.

A checkpoint folder holds `model.safetensors` and `optimizer.safetensors` (see `state_dict`),
`trainer_state.json` (transformers' own: step, epoch, log), `state.json` (scheduler, parameter
groups, failure counts, and the identity that a resumed run must share) and `random.json` (the
generator states of each process).

`checkpoint_folder` makes the folder atomic. This module does not know the model.
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
from vip_llava.training import dist_utils
from vip_llava.training.resume.checkpoint_folder import (
    NewCheckpoint,
    latest_checkpoint,
    new_checkpoint,
    prune,
    why_incomplete,
)
from vip_llava.training.resume.state_dict import (
    optimizer_settings,
    optimizer_tensors,
    safetensors_chunks,
    trainable_state,
)

__all__ = ["SavedState", "resolve_checkpoint", "save_checkpoint"]

_MISMATCH = {
    "rows": "the data has a different number of rows",
    "batches_a_step": "processes times accumulation steps must stay the same",
    "order": "the order of rows differs: data.grouped, data.packing or the seed has changed",
    "base": "the frozen weights differ: another base model, or other train.parts",
}


def resolve_checkpoint(
    wanted: str | Path | bool | None, run: Path, device: torch.device
) -> Path | None:
    """The folder to resume from, the same in all processes: `wanted`, or with True the latest one.

    Raises:
        CheckpointError: no complete checkpoint exists, or the given one is not complete.
    """
    if wanted is None or wanted is False:
        return None
    answer: list[str] = ["", ""]
    if dist_utils.rank() == 0:
        if wanted is True:
            found = latest_checkpoint(run)
            answer = [str(found), "" if found else f"{run} holds no complete checkpoint"]
        else:
            reason = why_incomplete(Path(wanted))
            message = f"{wanted} is not a complete checkpoint: {reason}"
            answer = [str(wanted), message if reason else ""]
    path, error = dist_utils.broadcast_json(answer, device)
    if error:
        raise CheckpointError(error)
    return Path(path)


@dataclass(frozen=True)
class SavedState:
    """The part of a checkpoint that is not tensors."""

    folder: Path
    state: dict[str, Any]
    ranks: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> SavedState:
        """Read `state.json` and `random.json`. Raises CheckpointError."""
        try:
            texts = [(folder / name).read_text("utf-8") for name in ("state.json", "random.json")]
            state, ranks = (json.loads(text) for text in texts)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is not a checkpoint of RowTrainer: {error}") from error
        return cls(folder, state, ranks["ranks"])

    def of_rank(self, rank: int, world_size: int) -> dict[str, Any] | None:
        """The state of one process; None if another number of processes saved the checkpoint."""
        return self.ranks[rank] if len(self.ranks) == world_size else None

    def check(self, identity: dict[str, Any]) -> None:
        """Raise CheckpointError if the run that resumes differs from the one that was saved."""
        for key, now in identity.items():
            saved = self.state["identity"].get(key)
            if saved is None or now is None or saved == now:
                continue
            raise CheckpointError(
                f"{self.folder} can't be resumed exactly: {key} is {now!r} and was {saved!r} "
                f"({_MISMATCH.get(key, '')})"
            )


def save_checkpoint(trainer: Any) -> None:
    """Save the trainer's current step, then prune old checkpoints. All processes must call it.

    Raises:
        CheckpointError: in all processes, if the writing process can't write to the disk.
    """
    device, args = trainer.args.device, trainer.args
    run, step = Path(args.output_dir), int(trainer.state.global_step)
    ranks = dist_utils.all_gather_json(trainer.rank_state(), device)
    failure = ""
    try:
        with _open_checkpoint(run, step) as new:
            _write(trainer, new, ranks)
        if new is not None and args.save_total_limit:
            prune(run, args.save_total_limit)
    except (CheckpointError, OSError) as error:
        failure = str(error)
        if dist_utils.world_size() == 1:
            raise
    failures = [each for each in dist_utils.all_gather_json(failure, device) if each]
    if failures:
        raise CheckpointError(failures[0])


@contextmanager
def _open_checkpoint(run: Path, step: int) -> Iterator[NewCheckpoint | None]:
    """The new checkpoint on rank 0, None on the other ranks."""
    if dist_utils.rank() == 0:
        with new_checkpoint(run, step) as new:
            yield new
    else:
        yield None


def _write(trainer: Any, new: NewCheckpoint | None, ranks: list[Any]) -> None:
    """Gather every tensor in all processes and write it on rank 0.

    After a write error rank 0 still takes part in the remaining gathers, so that the other ranks
    do not hang; the error is raised afterwards.
    """
    error: OSError | None = None
    model, optimizer = trainer.model_wrapped, trainer.optimizer
    state: dict[str, Any] = {"groups": [], "scheduler": trainer.lr_scheduler.state_dict()}
    if trainer.is_deepspeed_enabled:
        _write_deepspeed(trainer, new)
    else:
        files = {"model": trainable_state(model), "optimizer": optimizer_tensors(optimizer, model)}
        for name, tensors in files.items():
            chunks = safetensors_chunks(tensors)
            if new is not None and error is None:
                try:
                    new.write(f"{name}.safetensors", chunks)
                except OSError as raised:
                    error = raised
            for _ in chunks:
                pass
        state["groups"] = optimizer_settings(optimizer, model)
    if error is not None:
        raise error
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
    """Let DeepSpeed write its own sharded, pickled files into the folder. Not tested."""
    step = int(trainer.state.global_step)
    folder = Path(trainer.args.output_dir) / f"checkpoint-{step}.unfinished"
    dist_utils.barrier()  # rank 0 has created the folder
    trainer.model_wrapped.save_checkpoint(str(folder if new is None else new.folder))
    dist_utils.barrier()
    if new is not None:
        new.add_existing_files()


def _trainer_state(trainer: Any) -> dict[str, Any]:
    """transformers' TrainerState with its callbacks' states, as its `save_to_json` writes it."""
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
