"""`vip-llava train` with a recipe on rows: the plan, the run, and handing the result on.

Reads what was typed and tells what happens; everything else is `training`. With several processes
(torchrun) only the first one speaks.
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
    """Plan or run a recipe on rows. `overrides`: texts by dotted keys."""
    from vip_llava.training.recipes.recipe_files import read

    recipe, devices = read(path, overrides), options.devices
    if dry_run:
        _plan(recipe, devices or int(os.environ.get("WORLD_SIZE", "1")))
        return
    if devices is not None:
        raise RequestError(
            f"--devices is for --dry-run; to train on {devices} devices start as many processes: "
            f"torchrun --nproc-per-node {devices} -m vip_llava train ..."
        )
    folder = out or (Path(recipe.out) if recipe.out is not None else None)
    if folder is None:
        raise RequestError("--out is missing, and the recipe names no folder as `out`")
    from vip_llava.training import dist_utils as together
    from vip_llava.training.run import run

    first = os.environ.get("RANK", "0") == "0"
    with _progress(recipe, first) as progress:
        result = run(
            recipe,
            folder.expanduser(),
            resume=options.resume,
            device=device,
            progress=progress,
            report=_report if first else None,
        )
    together.leave()
    if first:
        note(f"written: {result.folder} ({result.outcome.result})")
        _tell_failures(result.outcome.failures)
        if options.push is not None:
            from vip_llava.training.results.export import push_to_hub

            note(f"uploaded: {push_to_hub(result.folder, options.push)}")


@contextlib.contextmanager
def _progress(recipe: Recipe, first: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    if not first:
        yield None
        return
    with loading(recipe.about or "training") as progress:
        # Where nobody watches, each new stage is a line; the loss in it would make thousands.
        watched = sys.stderr.isatty()

        def tell(stage: str, done: int, total: int) -> None:
            progress(stage if watched else stage.partition(",")[0], done, total)

        yield tell


def _plan(recipe: Recipe, world: int) -> None:
    """The plan as JSON on stdout, its gist on stderr."""
    from vip_llava.training.recipes.plan import make_plan

    plan = make_plan(recipe, world)
    sys.stdout.write(json.dumps(plan, indent=2) + "\n")
    batch, steps = plan["batch"], plan["steps"]
    learns = ", ".join(f"{part} {count / 1e6:,.1f}M" for part, count in plan["learns"].items())
    memory = plan["memory on each device (GB, estimated)"]["together"]
    note(
        f"{batch['rows at once on a device']} rows x {world} devices x {batch['rounds a step']} "
        f"rounds = {batch['rows a step']} rows a step; "
        + (f"{steps:,} steps" if steps is not None else "steps unknown without the files")
    )
    note(f"learns: {learns}; about {memory:.1f} GB on each device")
    for name in plan["files that are absent"]:
        note(f"{name} is not there")


def _report(values: dict[str, Any]) -> None:
    shown = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
    sys.stdout.write(json.dumps(shown) + "\n")
    sys.stdout.flush()


def _tell_failures(failures: Mapping[str, Any]) -> None:
    if failures.get("failed"):
        note(f"{failures['failed']} rows could not be used: see training/failures.jsonl")
