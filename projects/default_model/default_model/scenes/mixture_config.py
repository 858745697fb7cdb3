"""Configuration of a training mixture: kinds of batches, their sizes, and the sampling of scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from default_model.scenes.augment import AugmentSettings

VIEWS = {"whole": 1, "one": 2, "two": 3, "three": 4, "four": 5}
"""Views of a row by the kind of its batch: the whole image, and a focal view of each region."""
MARKED = {"whole": 1, "one": 1, "two": 2, "three": 3, "four": 4}
"""Marked objects of a scene by the kind of its batch."""


@dataclass(frozen=True)
class MixtureConfig:
    """Proportions and sizes of the kinds of batches, and where their scenes come from."""

    shares: dict[str, float] = field(
        default_factory=lambda: {"one": 0.66, "whole": 0.14, "two": 0.10, "four": 0.10}
    )
    rows: dict[str, int] = field(
        default_factory=lambda: {"one": 256, "whole": 448, "two": 144, "three": 104, "four": 80}
    )
    text_tokens: dict[str, int] = field(
        default_factory=lambda: {"one": 62, "whole": 63, "two": 151, "three": 222, "four": 293}
    )
    turns: dict[str, int] = field(
        default_factory=lambda: {"one": 1, "whole": 1, "two": 3, "three": 4, "four": 4}
    )
    """Maximum number of questions about a scene."""
    caption_tokens: tuple[int, int] = (30, 46)
    """Tokens for the caption of each named focal view: without and with its relation to the others."""
    shape_weights: Mapping[str, float] = field(default_factory=dict)
    """Relative frequency of each shape, 1 by default."""
    mosaic_share: float = 0.18
    single_share: float = 0.10
    label_power: float = -0.5
    focal_scale: tuple[float, float] = (1.2, 2.2)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
