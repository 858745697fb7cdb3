"""Options of `vip-llava train` that say where weights come from and how a run starts."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from vip_llava.cli.model_options import BaseOption, VisionTowerOption

__all__ = ["RowsOptions"]

_PANEL = "Weights and devices"


def _option(*flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=_PANEL, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class RowsOptions:
    """Options besides the recipe, its data and the result."""

    base: BaseOption = None
    vision_tower: VisionTowerOption = None
    resume: Annotated[
        bool,
        _option(
            "--resume",
            text="Continue from the last complete checkpoint in --out; start if there is none.",
        ),
    ] = False
    devices: Annotated[
        int | None,
        _option("--devices", metavar="N", min=1, text="With --dry-run: plan for N devices."),
    ] = None
    push: Annotated[
        str | None,
        _option(
            "--push",
            metavar="OWNER/NAME",
            text="Upload the result to the Hugging Face Hub as a private repository.",
        ),
    ] = None

    def overrides(self) -> dict[str, str]:
        """The values of the recipe that these options change, by dotted keys."""
        given = {"model.base": self.base, "model.tower": self.vision_tower}
        return {name: value for name, value in given.items() if value is not None}
