"""Trains a stage of the default model.

    python projects/default_model/train.py projects/default_model/recipes/stage1.yaml --data FOLDER --out runs/first

FOLDER holds `regions.jsonl` with its photos, and packs of single photos; see the README beside this
file. Each report is one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.errors import RequestError, VipLlavaError

if TYPE_CHECKING:
    from default_model.training.assembly import TrainingPhotos
    from default_model.training.recipe import StageRecipe

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 2 for a mistake that the user can correct."""
    given = _parser().parse_args(arguments)
    try:
        _train(given)
    except VipLlavaError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a stage of the default model.",
        epilog="Start with --dry-run: it prints the settings, the photos and the number of trained "
        "parameters, and downloads nothing.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file in recipes/")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", required=True,
        help="folder with regions.jsonl, its photos, and packs",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="for the result")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="change a value of the recipe (repeatable)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda")
    parser.add_argument(
        "--tower", type=Path, metavar="FILE",
        help="the published tower (.pth or safetensors); downloaded if not given",
    )  # fmt: skip
    parser.add_argument(
        "--start", type=Path, action="append", default=[], metavar="DIR",
        help="start from these trained weights; given several times, from their mean",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="N", help="stop and save after N seconds"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use at most N photos of each kind, for a trial"
    )
    return parser


def _train(given: argparse.Namespace) -> None:
    from default_model.training.recipe import load_recipe

    recipe = load_recipe(given.recipe.expanduser(), _overrides(given.changes))
    tower = given.tower.expanduser() if given.tower is not None else None
    if tower is not None and not tower.is_file():
        raise RequestError(f"--tower {given.tower}: the file does not exist")
    start = [folder.expanduser() for folder in given.start]
    for folder in start:
        if not (folder / "parts.json").is_file():
            raise RequestError(f"--start {folder} holds no trained weights (no parts.json)")
    from default_model.training.assembly import build, read_training_photos

    photos = read_training_photos(given.data.expanduser(), given.limit)
    for name in photos.missing:
        print(f"train.py: {given.data} has no {name}; continuing without it", file=sys.stderr)
    if given.dry_run:
        print(json.dumps(_plan(recipe, photos), indent=2))
        return
    import torch

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    compiled = device.startswith("cuda")
    trainer = build(recipe, photos, tower, device, compiled=compiled, start=start)
    trainer.run(given.out.expanduser(), seconds=given.seconds, report=_report)
    print(f"train.py: written: {given.out}", file=sys.stderr)


def _overrides(pairs: Sequence[str]) -> dict[str, str]:
    changed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"--set {pair}: write it as KEY=VALUE, like --set steps=100")
        changed[key.strip()] = value.strip()
    return changed


def _plan(recipe: StageRecipe, photos: TrainingPhotos) -> dict[str, Any]:
    """What a run would do, as JSON values; needs no weights."""
    from default_model.training.assembly import mixture_config, trained_parameters

    mixture = mixture_config(recipe)
    return {
        "settings": recipe.model_dump(),
        "steps": recipe.steps,
        "batches": {
            kind: {"share": mixture.shares[kind], "rows": mixture.rows[kind]}
            for kind in mixture.shares
        },
        "photos": {
            "with several objects": len(photos.photos),
            "of one object": len(photos.singles),
            "kept for validation": photos.left_out,
        },
        "trained": trained_parameters(recipe),
    }


def _report(values: dict[str, Any]) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    sys.exit(main())
