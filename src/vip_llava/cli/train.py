"""`vip-llava train`: train by a recipe, on rows or (its own recipes) the default model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.settings import DebugFlag
from vip_llava.cli.terminal import loading, note
from vip_llava.cli.train_options import DefaultOptions, RowsOptions
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.training.scenes.default_model import TrainingPhotos
    from vip_llava.training.scenes.settings import RunSettings

__all__ = ["EPILOG", "train"]

EPILOG = """Examples

  vip-llava train recipes/tutorial/tiny.yaml --out first --set steps=2

  vip-llava train recipes/vicuna-7b/stage2.yaml --devices 8 --dry-run

  vip-llava train recipes/vicuna-7b/task-lora.yaml --data mine --set data.files=rows.jsonl --dry-run

  vip-llava train recipes/default-model.yaml --data labelled --out trained --dry-run

  vip-llava train recipes/default-model.yaml --data labelled --out trained --set steps=100 --dry-run

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
            help="Folder of the row files and their images (data.root of the recipe). For the "
            "default model: folder with regions.jsonl, its photos, and packs.",
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
            "--dry-run", help="Show what would be done: settings, steps, what learns; then end."
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda.")
    ] = None,
    rows: RowsOptions,
    default: DefaultOptions,
    debug: DebugFlag = False,
) -> None:
    """Train by a recipe: a YAML file that says everything about a run.

    Look first with --dry-run: it prints the resolved recipe, how many steps there are, what learns
    and about how much memory each device needs, and fetches nothing. Change values with --set, by
    their place in the recipe: --set batch.per_device=4. The rows of a step stay the same for any
    number of devices. Without weights, begin with recipes/tutorial/tiny.yaml.

    Each report is one JSON line on stdout. The result is a folder that --model of `ask` opens (an
    adapter also needs --base), with a model card and the loss curve; checkpoints, metrics.jsonl and
    the rows that could not be used are in its folder `training`. A run that was stopped goes on
    with --resume, as if it had not been stopped.
    """
    from vip_llava.training.recipes.recipe_files import is_rows

    path = recipe.expanduser()
    overrides = _overrides(changes or ())
    if is_rows(path):
        from vip_llava.cli.train_rows import train_rows

        default.refuse()
        overrides = {**rows.overrides(), **overrides}
        if data is not None:
            overrides = {"data.root": str(data.expanduser()), **overrides}
        train_rows(
            path,
            out=out,
            overrides=overrides,
            options=rows,
            device=device,
            dry_run=dry_run,
        )
        return
    rows.refuse()
    if data is None or out is None:
        missing = "--data" if data is None else "--out"
        raise RequestError(f"{missing} is missing: the default model's recipes name no folders")
    _train_default(path, data, out, overrides, default, device, dry_run)


def _train_default(
    path: Path,
    data: Path,
    out: Path,
    overrides: Mapping[str, str],
    options: DefaultOptions,
    device: str | None,
    dry_run: bool,
) -> None:
    """Train the default model by one of its recipes."""
    tower, seconds, most = options.tower, options.seconds, options.most
    start = [folder.expanduser() for folder in options.start or ()]
    from vip_llava.training.scenes.settings import read_recipe

    settings = read_recipe(path, overrides)
    if tower is not None and not tower.expanduser().is_file():
        raise RequestError(f"--tower {tower}: no such file")
    for folder in start:
        if not (folder / "parts.json").is_file():
            raise RequestError(f"--start {folder}: no trained parts there (parts.json is missing)")
    from vip_llava.training.scenes.default_model import build, read_training

    photos = read_training(data.expanduser(), most)
    for name in photos.absent:
        note(f"{data} has no {name}; going on without it")
    if dry_run:
        _print(_plan(settings, photos))
        return
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    with loading("preparing the model and the photos") as progress:
        trainer = build(
            settings,
            photos,
            tower.expanduser() if tower is not None else None,
            where,
            compiled=where.startswith("cuda"),
            start=start,
            progress=progress,
        )
    trainer.run(out.expanduser(), seconds=seconds, report=_report)
    note(f"written: {out}")


def _overrides(pairs: Sequence[str]) -> dict[str, str]:
    changed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"--set {pair}: write it as KEY=VALUE, like --set steps=100")
        changed[key.strip()] = value.strip()
    return changed


def _plan(settings: RunSettings, photos: TrainingPhotos) -> dict[str, Any]:
    """What a run would do, as JSON values; opens and fetches no weights."""
    from vip_llava.training.scenes.default_model import mix_settings, trained_parts

    mix = mix_settings(settings)
    return {
        "settings": settings.model_dump(),
        "steps": settings.steps,
        "batches": {
            kind: {"share": mix.shares[kind], "rows": mix.rows[kind]} for kind in mix.shares
        },
        "photos": {
            "with several things": len(photos.photos),
            "of one thing": len(photos.singles),
            "kept for validation": photos.left_out,
        },
        "trained": trained_parts(settings),
    }


def _print(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def _report(values: dict[str, Any]) -> None:
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    sys.stdout.write(json.dumps(shown) + "\n")
    sys.stdout.flush()
