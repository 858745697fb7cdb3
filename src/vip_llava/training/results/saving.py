"""The end of a run: weights gathered, the result exported, card and loss curve beside it.

Only the first process writes; the others help to gather. It knows no rows.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vip_llava.errors import DataError
from vip_llava.training import dist_utils as together
from vip_llava.training.adapters import adapter_state
from vip_llava.training.metrics import METRICS
from vip_llava.training.param_groups import bare
from vip_llava.training.recipes.model_init import Start
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.results.model_card import Outcome, model_card
from vip_llava.training.results.loss_curve import write_curve
from vip_llava.training.results.export import export_adapter, export_model, export_projector
from vip_llava.training.resume.state_dict import plain_name

__all__ = ["finish"]


def finish(
    recipe: Recipe,
    start: Start,
    trainer: Any,
    outcome: Outcome,
    out: Path,
    work: Path,
    *,
    dtype: torch.dtype,
) -> None:
    """Export what was trained into `out`; the card is written last and marks it as complete.

    Args:
        dtype: of the written weights of whole models and projectors.
    """
    model = bare(trainer.model)
    state = _gathered(trainer, model, outcome.result)
    if together.rank() == 0:
        partial = work / "result"
        shutil.rmtree(partial, ignore_errors=True)
        if outcome.result == "adapter":
            export_adapter(
                model,
                start.processor,
                partial,
                base=start.belongs_to,
                config=start.projector_config,
                state=state,
            )
        elif outcome.result == "projector":
            assert start.projector_config is not None
            export_projector(model, start.projector_config, partial, dtype=dtype, state=state)
        else:
            export_model(
                model,
                start.processor,
                start.folders,
                partial,
                layout=recipe.save.layout,
                dtype=dtype,
                state=state,
            )
        for path in sorted(partial.iterdir()):
            path.replace(out / path.name)
        partial.rmdir()
        with contextlib.suppress(DataError):  # a run of one report has no curve
            write_curve(work / METRICS, out / "loss.png", recipe.about or "loss")
        card = model_card(recipe, outcome, out.name)
        (out / "README.md").write_text(card, encoding="utf-8")
    together.barrier()


def _gathered(trainer: Any, model: nn.Module, result: str) -> dict[str, Tensor] | None:
    """Whole weights on the CPU where no process has them all; None where the model does."""
    if trainer.is_deepspeed_enabled:
        found = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return {plain_name(n): t for n, t in (found or {}).items()}
    every = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in every.values()):
        return None
    chosen = adapter_state(model) if result == "adapter" else every  # type: ignore[arg-type]
    whole = {}
    for name, tensor in chosen.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if together.rank() == 0:
            whole[plain_name(name)] = full.detach().cpu()
    return whole
