"""The end of a run: gather the weights, export the result, write the model card and loss curve.

Rank 0 writes; the other ranks take part in gathering. It does not know rows.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from vip_llava.errors import DataError
from vip_llava.training import dist_utils
from vip_llava.training.adapters import adapter_state
from vip_llava.training.metrics import METRICS
from vip_llava.training.param_groups import unwrap
from vip_llava.training.recipes.model_init import InitialModel
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.results.export import export_adapter, export_model, export_projector
from vip_llava.training.results.loss_curve import write_loss_curve
from vip_llava.training.results.model_card import RunSummary, model_card
from vip_llava.training.resume.state_dict import strip_wrappers

__all__ = ["save_result"]


def save_result(
    recipe: Recipe,
    initial: InitialModel,
    trainer: Any,
    summary: RunSummary,
    out: Path,
    work: Path,
    *,
    dtype: torch.dtype,
) -> None:
    """Export the trained model into `out`. The model card is written last and marks it as complete.

    Args:
        dtype: of the written weights of whole models and projectors.
    """
    model = unwrap(trainer.model)
    state = _gather_weights(trainer, model, summary.result)
    if dist_utils.rank() == 0:
        partial = work / "result"
        shutil.rmtree(partial, ignore_errors=True)
        config = initial.projector_config
        if summary.result == "adapter":
            export_adapter(
                model, initial.processor, partial, base=initial.base, config=config, state=state
            )
        elif summary.result == "projector":
            assert config is not None
            export_projector(model, config, partial, dtype=dtype, state=state)
        else:
            layout, folders = recipe.save.layout, initial.folders
            export_model(
                model, initial.processor, folders, partial, layout=layout, dtype=dtype, state=state
            )
        for path in sorted(partial.iterdir()):
            path.replace(out / path.name)
        partial.rmdir()
        with contextlib.suppress(DataError):  # a run with a single report has no curve
            write_loss_curve(work / METRICS, out / "loss.png", recipe.about or "loss")
        card = model_card(recipe, summary, out.name)
        (out / "README.md").write_text(card, encoding="utf-8")
    dist_utils.barrier()


def _gather_weights(trainer: Any, model: PreTrainedModel, result: str) -> dict[str, Tensor] | None:
    """Whole weights on the CPU of rank 0 for a sharded model; None for a model that is not."""
    if trainer.is_deepspeed_enabled:
        found = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return {strip_wrappers(n): t for n, t in (found or {}).items()}
    every = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in every.values()):
        return None
    whole = {}
    for name, tensor in (adapter_state(model) if result == "adapter" else every).items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist_utils.rank() == 0:
            whole[strip_wrappers(name)] = full.detach().cpu()
    return whole
