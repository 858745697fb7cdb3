"""What a training run is: every number of it, read from a recipe file and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vip_llava.errors import DataError


class RunSettings(BaseModel):
    """One run of the region trainer. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(description="optimizer steps", gt=0)
    warmup: int = Field(60, description="steps of linear warm-up", ge=0)
    final: float = Field(0.02, description="learning rate at the end, as a share of its peak")
    lora_rank: int = Field(32, description="rank of the language model's change; 0 tunes all of it")
    lora_alpha: float = Field(64, description="scale of that change, divided by the rank")
    lr_language: float = 5e-4
    lr_projector: float = 1e-3
    lr_tower: float = 2e-4
    weight_decay: float = 0.05
    clip: float = Field(1.0, description="largest norm of the gradient")
    average: float = Field(0.998, description="decay of the average of the weights; 0 keeps none")
    auxiliary: float = Field(0.3, description="weight of the class loss on the focal summary token")
    smoothing: float = Field(0.0, description="label smoothing of both losses", ge=0, lt=1)
    lora_dropout: float = Field(0.0, description="dropout before the language model's change")
    drop_view: float = Field(0.0, description="share of whole views blanked beside a focal one")
    drop_token: float = Field(0.0, description="share of picture tokens blanked")
    mosaic_share: float = 0.18
    single_share: float = 0.10
    rows_scale: float = Field(1.0, description="batch sizes relative to the mix's own")
    workers: int = 15
    seed: int = 0
    report_every: int = 50
    save_every: int = Field(0, description="steps between saved states; 0 saves only the end")


def read_recipe(path: Path, overrides: dict[str, Any] | None = None) -> RunSettings:
    """The settings in a YAML file, with overrides. Raises DataError that names file and key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return RunSettings(**{**values, **(overrides or {})})
    except (OSError, yaml.YAMLError, TypeError, ValidationError) as error:
        raise DataError(f"recipe {path}: {error}") from error
