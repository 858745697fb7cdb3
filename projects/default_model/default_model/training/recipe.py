"""The recipe of a training stage: all its settings, read from a YAML file and validated.

It does not know where data or weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vip_llava.errors import DataError, MissingExtraError

_Shape = Literal["box", "ellipse", "triangle", "point", "scribble", "contour", "mask", "arrow"]
_Weight = Annotated[float, Field(ge=0)]
_Scale = Annotated[float, Field(gt=0)]


class StageRecipe(BaseModel):
    """The settings of one stage. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(description="optimizer steps", gt=0)
    warmup: int = Field(60, description="steps of linear warm-up", ge=0)
    final: float = Field(
        0.02, description="learning rate at the end, as a fraction of the peak", ge=0
    )
    lora_rank: int = Field(
        32, description="LoRA rank of the language model; 0: train all its weights", ge=0
    )
    lora_alpha: float = Field(64, description="LoRA alpha; the scale is alpha / rank", gt=0)
    lr_language: float = Field(
        5e-4, description="peak rate of the language model; a part with rate 0 is frozen", ge=0
    )
    lr_projector: float = Field(1e-3, description="peak rate of the projector", ge=0)
    lr_tower: float = Field(2e-4, description="peak rate of the tower", ge=0)
    tuned_layers: int = Field(
        0, description="number of last layers of the language model to train; 0: all", ge=0
    )
    weight_decay: float = Field(
        0.05, description="weight decay of matrices; vectors have none", ge=0
    )
    clip: float = Field(1.0, description="maximum gradient norm", gt=0)
    average: float = Field(
        0.998, description="decay of the moving average of the weights; 0: no average", ge=0, lt=1
    )
    auxiliary: float = Field(
        0.3, description="weight of the class loss on the focal summary token", ge=0
    )
    naming: float = Field(
        0.0,
        description="weight of the loss of the mention labels of several marks",
        ge=0,
    )
    smoothing: float = Field(0.0, description="label smoothing of both losses", ge=0, lt=1)
    lora_dropout: float = Field(0.0, description="dropout before the LoRA layers", ge=0, lt=1)
    drop_view: float = Field(
        0.0, description="fraction of whole-image views set to 0 beside a focal view", ge=0, lt=1
    )
    drop_token: float = Field(0.0, description="fraction of image tokens set to 0", ge=0, lt=1)
    mosaic_share: float = Field(0.18, description="fraction of mosaics", ge=0, le=1)
    single_share: float = Field(0.10, description="fraction of photos of one object", ge=0, le=1)
    shape_weights: dict[_Shape, _Weight] = Field(
        {}, description="relative frequency of shapes, 1 by default"
    )
    harsh_share: float = Field(
        0.0, description="fraction of scenes that are tinted, blurred, grey or grainy", ge=0, le=1
    )
    label_power: float = Field(
        -0.5,
        description="objects are sampled by the count of their label to this power",
        ge=-1,
        le=0,
    )
    shares: dict[Literal["one", "two", "three", "four", "whole"], _Weight] = Field(
        {"one": 0.66, "two": 0.10, "four": 0.10, "whole": 0.14},
        description="proportions of batches about one to four marked objects, and about whole images",
    )
    focal_scale: float = Field(
        1.6, description="side of a focal view, relative to the region's longer side", gt=0
    )
    focal_minimum: float = Field(56, description="minimum side of a focal view in pixels", gt=0)
    focal_point_share: float = Field(
        0.15,
        description="side of a focal view of an arrow or point, relative to the image's longer side",
        gt=0,
    )
    named_views: bool = Field(False, description="caption each focal view: what it shows and where")
    ranked_views: bool = Field(
        False,
        description="with named views: also count several regions from the left and from the top",
    )
    told_views: bool = Field(
        False,
        description="with named views: say after each of several regions where it is, relative to the others",
    )
    image_scale: tuple[_Scale, _Scale] = Field(
        (0.4, 1.1), description="minimum and maximum scale of a photo"
    )
    fine_marks: bool = Field(
        False,
        description="draw the marks of a focal view anew, with lines as thin as on the whole image",
    )
    mean_with_start: bool = Field(
        False, description="the result is the mean of the start and the trained weights"
    )
    rows_scale: float = Field(1.0, description="factor on all batch sizes", gt=0)
    workers: int = Field(15, description="processes that make batches, at most one per core", ge=0)
    seed: int = Field(0, description="seed of batches and new weights", ge=0)
    report_every: int = Field(50, description="steps between reports", gt=0)
    save_every: int = Field(0, description="steps between saved weights; 0: only at the end", ge=0)


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> StageRecipe:
    """The recipe in a YAML file, with overrides. Raises DataError with file and keys."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "a recipe is a YAML file, which needs pyyaml: pip install 'vip-llava[train]'"
        ) from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"recipe {path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"recipe {path} must hold keys and values, like `steps: 1000`")
    try:
        return StageRecipe.model_validate({**values, **(overrides or {})})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DataError(f"recipe {path}: {'; '.join(wrong)}") from error
