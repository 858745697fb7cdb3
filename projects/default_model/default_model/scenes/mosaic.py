"""Mosaics: grids of photos in which only the mark tells which of them is meant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from vip_llava.evaluation.coco_annotations import LabelledObject

Tile = tuple[Image.Image, str]
"""An image of one object, and its label."""


def mosaic(
    draw_tile: Callable[[], Tile], rng: np.random.Generator, *, side: int = 384, most: int = 4
) -> tuple[Image.Image, list[LabelledObject]]:
    """A square RGB image of `side` pixels with 2..most tiles per row and column, and its objects."""
    columns, rows = (int(n) for n in rng.integers(2, most + 1, 2))
    grey = int(rng.integers(256))
    image = Image.new("RGB", (side, side), (grey, grey, grey))
    width, height = side // columns, side // rows
    objects = []
    for row in range(rows):
        for column in range(columns):
            tile, word = draw_tile()
            shrink = rng.uniform(0.75, 1.0)
            w, h = max(int(width * shrink), 8), max(int(height * shrink), 8)
            # Limit the aspect ratio; a stretched object keeps its label.
            ratio = float(np.clip(tile.width / tile.height, 0.5, 2.0))
            w, h = min(w, int(h * ratio)), min(h, int(w / ratio))
            left = column * width + int(rng.integers(max(width - w, 0) + 1))
            top = row * height + int(rng.integers(max(height - h, 0) + 1))
            image.paste(tile.resize((w, h), Image.Resampling.BILINEAR), (left, top))
            box = (float(left), float(top), float(left + w), float(top + h))
            objects.append(LabelledObject(word, box))
    return image, objects
