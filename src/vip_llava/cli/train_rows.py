"""`vip-llava train` for recipes on rows: the dry-run plan, the run, and the upload.

Turns options into calls of `training` and shows its reports. With several processes (torchrun) only
rank 0 writes to the terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.cli.terminal import loading, note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.cli.train_options import RowsOptions
    from vip_llava.training.recipes.recipe import Recipe

__all__ = ["train_rows"]


def train_rows(
    path: Path,
    *,
    out: Path | None,
    overrides: Mapping[str, str],
    options: RowsOptions,
    device: str | None,
    dry_run: bool,
) -> None:
    """Plan or run a recipe on rows. `overrides`: values of the recipe by dotted keys."""
    from vip_llava.training.recipes.recipe_files import load_recipe

    recipe, devices = load_recipe(path, overrides), options.devices
    if dry_run:
        _print_plan(recipe, devices or int(os.environ.get("WORLD_SIZE", "1")))
        return
    if devices is not None:
        raise RequestError(
            f"--devices is for --dry-run; to train on {devices} devices start that many processes: "
            f"torchrun --nproc-per-node {devices} -m vip_llava train ..."
        )
    folder = out or (Path(recipe.out) if recipe.out is not None else None)
    if folder is None:
        raise RequestError("--out is missing, and the recipe has no key `out`")
    from vip_llava.training import dist_utils
    from vip_llava.training.run import run

    folder = folder.expanduser()
    first = os.environ.get("RANK", "0") == "0"
    with _progress(recipe, first) as progress:
        summary = run(
            recipe,
            folder,
            resume=options.resume,
            device=device,
            progress=progress,
            report=_print_report if first else None,
        )
    dist_utils.destroy_process_group()
    if not first:
        return
    note(f"written: {folder} ({summary.result})")
    if failed := summary.failures.get("failed"):
        note(f"{failed} bad rows were skipped: see training/failures.jsonl")
    if options.push is not None:
        from vip_llava.training.results.export import push_to_hub

        note(f"uploaded: {push_to_hub(folder, options.push)}")


@contextlib.contextmanager
def _progress(recipe: Recipe, first: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    if not first:
        yield None
        return
    with loading(recipe.about or "training") as progress:
        # Without a terminal each new stage is a line; the loss in its name would make thousands.
        terminal = sys.stderr.isatty()

        def show(stage: str, done: int, total: int) -> None:
            progress(stage if terminal else stage.partition(",")[0], done, total)

        yield show


def _print_plan(recipe: Recipe, world_size: int) -> None:
    """Print the plan as JSON on stdout, and a summary on stderr."""
    from vip_llava.training.recipes.plan import make_plan

    plan = make_plan(recipe, world_size)
    sys.stdout.write(json.dumps(plan, indent=2) + "\n")
    batch, steps = plan["batch"], plan["steps"]
    trainable = ", ".join(f"{part} {n / 1e6:,.1f}M" for part, n in plan["trainable"].items())
    memory = plan["memory per device (GB, estimated)"]["total"]
    note(
        f"{batch['rows per device']} rows x {world_size} devices x {batch['accumulation steps']} "
        f"accumulation steps = {batch['rows per step']} rows per step; "
        + (f"{steps:,} steps" if steps is not None else "number of steps unknown without the files")
    )
    note(f"trainable: {trainable}; about {memory:.1f} GB per device")
    for name in plan["missing files"]:
        note(f"{name} does not exist")


def _print_report(values: dict[str, Any]) -> None:
    shown = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
    sys.stdout.write(json.dumps(shown) + "\n")
    sys.stdout.flush()
