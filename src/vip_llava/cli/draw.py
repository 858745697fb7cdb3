"""`vip-llava draw`: draw regions on a photo and write the image. Needs no model and no torch."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from vip_llava.cli.inputs import (
    PhotoArgument,
    check_target,
    mark,
    photo_and_question,
    save_image,
)
from vip_llava.cli.legacy_options import LegacyOptions
from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.region_options import RegionOptions
from vip_llava.errors import RequestError

__all__ = ["EPILOG", "draw"]

EPILOG = """Examples

  vip-llava draw photo.jpg --box 100,80,260,300 --save drawn.png

  vip-llava draw photo.jpg --color lime --ellipse 10,10,90,90 --save lime.png

  vip-llava draw photo.jpg --regions regions.json --save - | display
"""


def draw(
    ctx: typer.Context,
    *,
    photo: PhotoArgument = None,
    regions: RegionOptions,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Write the image here; - is stdout."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the resolved regions as JSON.")
    ] = False,
    legacy: LegacyOptions,
    debug: DebugFlag = False,
) -> None:
    """Draw regions on a photo, exactly as a model sees them.

    The same photo and regions always give the same image.
    """
    photo, _ = photo_and_question(photo, None, legacy.image_file, None)
    if save is None and not as_json:
        raise RequestError("no output: add --save OUT.png (or --json for the regions alone)")
    if save == "-" and as_json:
        raise RequestError("--save - and --json both write to stdout; give --save a file name")
    check_target(save, photo)
    marked, notes = mark(ctx, photo, regions, legacy)
    if not marked.regions:
        raise RequestError("nothing to draw: mark a region, for example --box x1,y1,x2,y2")
    if save is not None:
        save_image(marked.shown, save)
    if as_json:
        content = {
            "size": list(marked.shown.size),
            "regions": [region.to_json() for region in marked.regions],
            "notes": notes,
            "saved": save,
        }
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
