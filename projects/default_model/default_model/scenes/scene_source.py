"""Samples scenes from photos with labelled objects, photos of single objects, and mosaics.

It does not know what is asked about a scene, nor how it becomes a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from default_model.scenes.augment import augment
from default_model.scenes.marking import mark
from default_model.scenes.mixture_config import MARKED, MixtureConfig
from default_model.scenes.mosaic import mosaic
from default_model.scenes.photos import Photo
from default_model.scenes.scene import Scene, overlap
from vip_llava.errors import DataError
from vip_llava.evaluation.coco_annotations import LabelledObject


class SceneSource:
    """Samples scenes from photos; a scene depends on its kind and the generator alone."""

    def __init__(
        self, photos: Sequence[Photo], singles: Sequence[Photo], settings: MixtureConfig
    ) -> None:
        """photos: with several objects each; singles: with one.

        Raises DataError if no photo has a labelled object.
        """
        self.photos, self.singles, self.settings = list(photos), list(singles), settings
        self.places = [
            (p, t) for p, photo in enumerate(self.photos) for t in range(len(photo.objects))
        ]
        if not self.places:
            raise DataError("no photo with labelled objects to train on")
        labels = [self.photos[p].objects[t].label for p, t in self.places]
        self.words = tuple(word for word, _ in Counter(labels).most_common(120))
        """The most frequent labels."""
        self.chance = _chances(labels, settings.label_power)
        self.single_chance = _chances([s.objects[0].label for s in self.singles], -0.5)
        self.captioned = [p for p, photo in enumerate(self.photos) if photo.captions]
        self.classes = sorted({*labels, *(s.objects[0].label for s in self.singles)})
        self.decoded: dict[int, Image.Image] = {}

    def decode_all(self) -> None:
        """Decode every photo once; workers that are forked afterwards share the pixels."""
        with ThreadPoolExecutor(16) as pool:
            self.decoded = dict(enumerate(pool.map(Photo.open, self.photos)))

    def scene(self, kind: str, rng: np.random.Generator) -> Scene | None:
        """A scene of a kind from a random source; None if the sample cannot be used."""
        chance = rng.random()
        if chance < self.settings.mosaic_share:
            image, things = mosaic(partial(self._tile, rng), rng)
            chosen = rng.permutation(len(things))[: MARKED[kind]].tolist()
            if len(chosen) < MARKED[kind]:
                return None
            return self._marked(image, things, chosen, rng)
        single = self.settings.mosaic_share + self.settings.single_share
        if self.singles and chance < single and kind in ("one", "whole"):
            return self._single_scene(kind, rng)
        if kind == "whole" and self.captioned and rng.random() < 0.55:
            return self._captioned_scene(rng)
        return self._photo_scene(MARKED[kind], rng)

    def _single_scene(self, kind: str, rng: np.random.Generator) -> Scene | None:
        """A photo of one object: marked, or in half of the "whole" rows without a mark."""
        photo = self.singles[int(self.single_chance.searchsorted(rng.random()))]
        image, moved = augment(photo.open(), photo.objects, (0,), rng, self.settings.augment)
        things = [t for t in moved if t]
        if kind == "whole" and rng.random() < 0.5:
            return Scene(image, tuple(things), (), ())
        return self._marked(image, things, [0], rng) if things else None

    def _captioned_scene(self, rng: np.random.Generator) -> Scene:
        """A photo with captions and without marks, cropped little, so that its captions stay true."""
        number = self.captioned[int(rng.integers(len(self.captioned)))]
        photo = self.photos[number]
        gentle = replace(self.settings.augment, smallest_window=0.9, zoom_out_share=0.0)
        image, moved = augment(self._open(number), photo.objects, (), rng, gentle)
        complete = photo.exhaustive_for if all(moved) else frozenset()
        return Scene(image, tuple(t for t in moved if t), (), (), photo.captions, complete)

    def _photo_scene(self, count: int, rng: np.random.Generator) -> Scene | None:
        number, first = self.places[int(self.chance.searchsorted(rng.random()))]
        photo = self.photos[number]
        chosen = [first]
        for other in rng.permutation(len(photo.objects)).tolist():
            apart = all(
                overlap(photo.objects[other].box, photo.objects[c].box) < 0.4 for c in chosen
            )
            if len(chosen) < count and apart:
                chosen.append(other)
        if len(chosen) < count:
            return None
        settings = self.settings.augment
        image, moved = augment(self._open(number), photo.objects, chosen, rng, settings)
        marked = [thing for thing in (moved[c] for c in chosen) if thing]
        if len(marked) < len(chosen):
            return None
        kept = [t for t in moved if t]
        return self._marked(image, kept, [kept.index(thing) for thing in marked], rng)

    def _marked(
        self,
        image: Image.Image,
        things: list[LabelledObject],
        chosen: list[int],
        rng: np.random.Generator,
    ) -> Scene:
        marked = tuple(things[c] for c in chosen)
        order = rng.permutation(
            len(marked)
        )  # region 1 is not always the first object that was chosen
        marked = tuple(marked[i] for i in order)
        regions = mark(marked, image.size, rng, self.settings.shape_weights)
        return Scene(image, tuple(things), marked, regions)

    def _tile(self, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """A tile of a mosaic: a photo of one object, or an object cut out with some surroundings."""
        if self.singles and rng.random() < 0.55:
            photo = self.singles[int(self.single_chance.searchsorted(rng.random()))]
            return photo.open(), photo.objects[0].label
        number, index = self.places[int(self.chance.searchsorted(rng.random()))]
        thing, source = self.photos[number].objects[index], self._open(number)
        x1, y1, x2, y2 = thing.box
        grow = rng.uniform(0.05, 0.6, 4) * (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
        box = (
            max(int(x1 - grow[0]), 0),
            max(int(y1 - grow[1]), 0),
            min(int(x2 + grow[2]) + 1, source.width),
            min(int(y2 + grow[3]) + 1, source.height),
        )
        return source.crop(box), thing.label

    def _open(self, number: int) -> Image.Image:
        found = self.decoded.get(number)
        return found if found is not None else self.photos[number].open()


def _chances(labels: Sequence[str], power: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Cumulative probabilities, proportional to the count of each label to a power."""
    counts = Counter(labels)
    weight = np.array([counts[label] ** power for label in labels], np.float64)
    return np.cumsum(weight / weight.sum()) if len(weight) else weight
