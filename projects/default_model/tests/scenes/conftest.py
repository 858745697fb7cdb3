"""Made scenes with known places, labels and marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from PIL import Image

from default_model.scenes.scene import Scene
from vip_llava.evaluation.coco_annotations import LabelledObject, Rectangle
from vip_llava.regions import Box, resolve

SceneMaker = Callable[..., Scene]


@pytest.fixture(scope="session")
def make_scene() -> SceneMaker:
    """`make_scene([("cat", box), ...], marked=2)`: the first `marked` objects get boxes as marks."""

    def make(
        things: Sequence[tuple[str, Rectangle]],
        marked: int | None = None,
        *,
        size: tuple[int, int] = (200, 160),
        regions: Sequence[Any] | None = None,
        **facts: Any,
    ) -> Scene:
        known = tuple(LabelledObject(label, box) for label, box in things)
        chosen = known[: len(known) if marked is None else marked]
        drawn = regions if regions is not None else [Box(*thing.box) for thing in chosen]
        resolved = resolve(drawn, size).regions if drawn else ()
        return Scene(Image.new("RGB", size), known, chosen, resolved, **facts)

    return make
