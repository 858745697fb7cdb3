"""What a training mix is made of: kinds of batches, their sizes, and how their scenes are drawn.

It deliberately does not know how scenes, questions and rows are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from default_model.scenes.augment import AugmentSettings

VIEWS = {"whole": 1, "one": 2, "two": 3, "three": 4, "four": 5}
"""Images of a row, by the kind of its batch: the whole one, and a focal view of each region."""
MARKED = {"whole": 1, "one": 1, "two": 2, "three": 3, "four": 4}
"""Marked things of a scene, where things are marked."""


@dataclass(frozen=True)
class MixtureConfig:
    """Shares and sizes of the batches, and where their scenes come from."""

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
    """Questions about one scene, as far as there is room for them."""
    caption_tokens: tuple[int, int] = (30, 46)
    """Room for the words about each focal view, where the views are named: its name and place, and
    with how it lies to the others."""
    shape_weights: Mapping[str, float] = field(default_factory=dict)
    """How often a shape comes against the others, where that is not once."""
    mosaic_share: float = 0.18
    single_share: float = 0.10
    label_power: float = -0.5
    focal_scale: tuple[float, float] = (1.2, 2.2)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
