"""`vip-llava train`: train the default model by a recipe."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.settings import DebugFlag
from vip_llava.cli.terminal import loading, note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.training.default_model import TrainingPhotos
    from vip_llava.training.settings import RunSettings

__all__ = ["EPILOG", "train"]

EPILOG = """Examples

  vip-llava train recipes/default-model.yaml --data labelled --out trained --dry-run

  vip-llava train recipes/default-model.yaml --data labelled --out trained --set steps=100 --dry-run
"""


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, see recipes/.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="DIR", help="Folder with regions.jsonl, its photos, and packs."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the trained parts.")
    ],
    tower: Annotated[
        Path | None,
        typer.Option(
            "--tower",
            metavar="FILE",
            help="The published tower (.pth or safetensors); fetched if not given.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="DIR", help="Go on from these trained parts."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe (repeatable)."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="N", min=0, help="Stop after so long, and save."),
    ] = math.inf,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1.")
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--most", metavar="N", min=1, help="Use N photos of each kind, for a trial."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show settings, photos, trained parts and steps; then end."),
    ] = False,
    debug: DebugFlag = False,
) -> None:
    """Train the default model by a recipe.

    Writes the trained parts (tower, projector, change of the language model) as safetensors, and
    log.json. Each report is one JSON line on stdout. `vip-llava eval --weights` scores the result.
    """
    from vip_llava.training.settings import read_recipe

    settings = read_recipe(recipe.expanduser(), _overrides(changes or ()))
    if tower is not None and not tower.expanduser().is_file():
        raise RequestError(f"--tower {tower}: no such file")
    if start is not None and not (start.expanduser() / "parts.json").is_file():
        raise RequestError(f"--start {start}: no trained parts there (parts.json is missing)")
    from vip_llava.training.default_model import build, read_training

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
            start=start.expanduser() if start is not None else None,
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
    from vip_llava.training.default_model import mix_settings, trained_parts

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
