"""A scene: an image, the objects in it, and the regions that mark some of them.

Every question is made from a scene. It does not know how the image was made (a photo, a crop, a
mosaic) nor how a conversation becomes tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vip_llava.evaluation.coco_annotations import LabelledObject
from vip_llava.regions import Region

Exchange = tuple[str, str]
"""A question and its answer; both may contain `<region:ID>`."""


@dataclass(frozen=True, slots=True)
class Scene:
    """`regions[i]` marks the object `marked[i]`; `objects` are all known objects, marked or not.

    regions: resolved (pixel frame, with id, colour, width, alpha). exhaustive_for: the classes of
    which `objects` has every object. captions: of the whole image.
    """

    image: Image.Image
    objects: tuple[LabelledObject, ...]
    marked: tuple[LabelledObject, ...]
    regions: tuple[Region, ...]
    captions: tuple[str, ...] = ()
    exhaustive_for: frozenset[str] = frozenset()

    def shares(self, index: int) -> list[str]:
        """Labels of the objects that cover nearly the same place as marked object `index`."""
        mine = self.marked[index]
        return [t.label for t in self.objects if t is not mine and overlap(t.box, mine.box) > 0.7]


Task = Callable[[Scene, np.random.Generator], Exchange | None]
"""Makes an exchange about a scene, or returns None if the scene does not allow its question."""


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the options, with equal probability."""
    return options[int(rng.integers(len(options)))]
