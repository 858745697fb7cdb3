"""Questions about the marks themselves: colour, shape, number."""

from __future__ import annotations

import numpy as np

from default_model.scenes.scene import Exchange, Scene, pick
from vip_llava.regions import color_name
from vip_llava.regions.phrases import wording

_COUNTS = ("zero", "one", "two", "three", "four", "five", "six")


def mark_color(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which colour is the mark? Only for colours with a name."""
    if len(scene.regions) != 1:
        return None
    painted = scene.regions[0].color
    color = color_name(painted) if painted is not None else None
    if color is None:
        return None
    return pick(rng, ("What color is the mark?", "What is the color of the drawn mark?")), color


def mark_shape(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which shape is the mark?"""
    if len(scene.regions) != 1:
        return None
    shape = wording(scene.regions[0].shape).split(" the ")[1]
    return pick(rng, ("What shape is the mark?", "Which shape is drawn on the picture?")), shape


def count_marks(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """How many objects are marked?"""
    if not 0 < len(scene.regions) < len(_COUNTS):
        return None
    question = pick(rng, ("How many objects are marked?", "How many regions are marked?"))
    return question, _COUNTS[len(scene.regions)]
