"""Options of `vip-llava train` that belong to one kind of recipe only: on rows, or the default model's.

Names and help texts; each group can say which of its options were given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vip_llava.cli.model_options import BaseOption, VisionTowerOption
from vip_llava.errors import RequestError

__all__ = ["DefaultOptions", "RowsOptions"]

ROWS_PANEL = "Recipes on rows"
DEFAULT_PANEL = "The default model's own recipes"


def _rows(*flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=ROWS_PANEL, **more)


def _default(*flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=DEFAULT_PANEL, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class RowsOptions:
    """What only a recipe on rows takes."""

    base: BaseOption = None
    vision_tower: VisionTowerOption = None
    resume: Annotated[
        bool,
        _rows(
            "--resume",
            text="Go on from the last whole checkpoint in --out, or begin if there is none.",
        ),
    ] = False
    devices: Annotated[
        int | None,
        _rows("--devices", metavar="N", min=1, text="With --dry-run: plan for so many devices."),
    ] = None
    push: Annotated[
        str | None,
        _rows(
            "--push",
            metavar="OWNER/NAME",
            text="Upload the result to the Hugging Face hub, private.",
        ),
    ] = None

    def overrides(self) -> dict[str, str]:
        """The values of the recipe that these options change, by their place in it."""
        given = {"model.base": self.base, "model.tower": self.vision_tower}
        return {name: value for name, value in given.items() if value is not None}

    def refuse(self) -> None:
        """Raises RequestError if one of these is given."""
        given = {
            "--base": self.base,
            "--vision-tower": self.vision_tower,
            "--resume": self.resume or None,
            "--devices": self.devices,
            "--push": self.push,
        }
        _refuse(given, "is for recipes on rows; this is one of the default model's own")


@dataclasses.dataclass(frozen=True, slots=True)
class DefaultOptions:
    """What only the default model's own recipes take."""

    tower: Annotated[
        Path | None,
        _default(
            "--tower",
            metavar="FILE",
            text="The published tower (.pth or safetensors); fetched if not given.",
        ),
    ] = None
    start: Annotated[
        list[Path] | None,
        _default(
            "--start",
            metavar="DIR",
            text="Go on from these trained parts; given several times: from their mean.",
        ),
    ] = None
    seconds: Annotated[
        float,
        _default("--seconds", metavar="N", min=0, text="Stop after so long, and save."),
    ] = math.inf
    most: Annotated[
        int | None,
        _default("--most", metavar="N", min=1, text="Use N photos of each kind, for a trial."),
    ] = None

    def refuse(self) -> None:
        """Raises RequestError if one of these is given."""
        given = {
            "--tower": self.tower,
            "--start": self.start or None,
            "--seconds": None if math.isinf(self.seconds) else self.seconds,
            "--most": self.most,
        }
        _refuse(given, "is for the default model's own recipes; this one trains on rows")


def _refuse(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise RequestError(f"{name} {why}")
