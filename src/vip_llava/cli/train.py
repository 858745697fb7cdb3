"""`vip-llava train`: train by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.train_options import RowsOptions
from vip_llava.errors import RequestError

__all__ = ["EPILOG", "train"]

EPILOG = """Examples

  vip-llava train recipes/tutorial/tiny.yaml --out first --set steps=2

  vip-llava train recipes/vicuna-7b/stage2.yaml --devices 8 --dry-run

  vip-llava train recipes/vicuna-7b/task-lora.yaml --data mine --dry-run

Several GPUs

  torchrun --nproc-per-node 8 -m vip_llava train recipes/vicuna-7b/stage2.yaml
"""


def train(
    *,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, see recipes/.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of the row files and their images (data.root of the recipe).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the result; `out` of the recipe."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the recipe (repeatable): optimizer.lr=1e-4.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan (settings, steps, trainable parameters) and exit."
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda.")
    ] = None,
    rows: RowsOptions,
    debug: DebugFlag = False,
) -> None:
    """Train by a recipe: a YAML file with all settings of a run.

    Start with --dry-run: it prints the resolved recipe, the number of steps, what is trained and an
    estimate of the memory per device, and downloads nothing. --set changes values by their keys in
    the recipe: --set batch.per_device=4. The rows of a step are the same for any number of devices.
    recipes/tutorial/tiny.yaml needs no weights.

    Each report is one JSON line on stdout. The result is a folder for --model of `ask` (an adapter
    also needs --base), with a model card and the loss curve. Its folder `training` has checkpoints,
    metrics.jsonl and the rows that could not be used. --resume continues an interrupted run as if
    it had not been interrupted.
    """
    from vip_llava.training.recipes.recipe_files import is_rows

    path = recipe.expanduser()
    overrides = {**rows.overrides(), **_overrides(changes or ())}
    if data is not None:
        overrides = {"data.root": str(data.expanduser()), **overrides}
    if not is_rows(path):
        raise RequestError(
            f"{path} is not a recipe for training on rows, which has the sections model, data and "
            "train. For a recipe of the default model: python projects/default_model/train.py"
        )
    from vip_llava.cli.train_rows import train_rows

    train_rows(path, out=out, overrides=overrides, options=rows, device=device, dry_run=dry_run)


def _overrides(pairs: Sequence[str]) -> dict[str, str]:
    changed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"--set {pair}: write it as KEY=VALUE, like --set steps=100")
        changed[key.strip()] = value.strip()
    return changed
