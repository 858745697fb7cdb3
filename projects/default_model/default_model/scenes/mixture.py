"""The training mixture of the default model: batches of scenes with marks, questions and answers.

A batch depends on (seed, number) alone, so that any worker can make any batch and a run can be
repeated. All rows of a batch have the same number of views: "one" (the whole image and a focal
view), "two", "three", "four" (that many marked objects) or "whole" (no geometry: marks that are only
drawn, captions, presence). It does not know the model or the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from default_model.scenes.mention_labels import IGNORED, mention_labels
from default_model.scenes.mixture_config import VIEWS, MixtureConfig
from default_model.scenes.photos import Photo
from default_model.scenes.questions.selection import exchanges, tasks_of
from default_model.scenes.scene import Exchange, Scene, Task
from default_model.scenes.scene_source import SceneSource
from vip_llava.errors import RegionError
from vip_llava.prompting.focal_views import FocalSettings, fine_marks, focal_square, focal_view
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.regions import Region, draw
from vip_llava.regions.phrases import expand

MixtureRow = tuple[list[Image.Image], list[int], list[int], list[int], list[int]]
"""Views, ids, labels, mention labels, and the class of the object in each focal view."""


class RegionMixture:
    """Makes training batches from photos with labelled objects and photos of single objects."""

    def __init__(
        self,
        photos: Sequence[Photo],
        singles: Sequence[Photo],
        processor: Processor,
        focal: FocalSettings,
        settings: MixtureConfig | None = None,
        seed: int = 0,
    ) -> None:
        """photos: with several objects each; singles: with one. focal: settings of focal views.

        Raises DataError if no photo has a labelled object.
        """
        self.settings, self.seed = settings or MixtureConfig(), seed
        self.source = SceneSource(photos, singles, self.settings)
        self.processor, self.focal = processor, focal
        self.classes = self.source.classes
        self.class_of = {word: i for i, word in enumerate(self.classes)}

    def kind_of(self, number: int) -> str:
        """The kind of batch `number`."""
        rng = np.random.default_rng((self.seed, number, 0))
        kinds = list(self.settings.shares)
        chances = np.array([self.settings.shares[k] for k in kinds])
        return kinds[int(rng.choice(len(kinds), p=chances / chances.sum()))]

    def batch(self, number: int) -> dict[str, Any]:
        """Batch `number`: `views` uint8 [B, V, S, S, 3], `input_ids` and `labels` int64 [B, T].

        `names` int64 [B, T]: see `mention_labels`. `classes` int64 [B, V - 1]: of the objects in the
        focal views. Padding is on the right.
        """
        kind = self.kind_of(number)
        rng = np.random.default_rng((self.seed, number, 1))
        rows = [self._row(kind, rng) for _ in range(self.settings.rows[kind])]
        side = self.processor.geometry.size
        length = self._length(kind)
        ids = np.full((len(rows), length), self.processor.pad_id, np.int64)
        labels = np.full((len(rows), length), IGNORED, np.int64)
        names = np.full((len(rows), length), IGNORED, np.int64)
        views = np.empty((len(rows), VIEWS[kind], side, side, 3), np.uint8)
        classes = np.empty((len(rows), VIEWS[kind] - 1), np.int64)
        for i, (row_views, row_ids, row_labels, row_names, row_classes) in enumerate(rows):
            ids[i, : len(row_ids)] = row_ids
            labels[i, : len(row_labels)] = row_labels
            names[i, : len(row_names)] = row_names
            views[i] = [np.asarray(v) for v in row_views]
            classes[i] = row_classes
        return {
            "kind": kind,
            "views": views,
            "input_ids": ids,
            "labels": labels,
            "names": names,
            "classes": classes,
        }

    def tasks(self, kind: str, scene: Scene) -> list[Task]:
        """The questions about a scene, repeated by their frequency; a subclass may ask others."""
        return tasks_of(kind, scene, self.source.words, told=self.focal.told)

    def _row(self, kind: str, rng: np.random.Generator) -> MixtureRow:
        # A scene may have no question, or too long ones: sample another. The number of tries is
        # limited, so that a mistake in a task is an error and not a hang.
        for _ in range(200):
            scene = self.source.scene(kind, rng)
            if scene is None:
                continue
            tasks = self.tasks(kind, scene)
            asked = exchanges(scene, tasks, self.settings.turns[kind], rng)
            row = self._encoded(kind, scene, asked, rng) if asked else None
            if row is not None:
                return row
        raise RuntimeError(f"no scene of kind {kind!r} could be made in 200 tries")

    def _encoded(
        self, kind: str, scene: Scene, asked: Sequence[Exchange], rng: np.random.Generator
    ) -> MixtureRow | None:
        """The row of a scene with as many of its exchanges as fit.

        None if the marks cannot be drawn, or not even one exchange fits.
        """
        try:
            image = draw(scene.image, scene.regions) if scene.regions else scene.image
        except RegionError:  # a random mark whose lines are outside the image
            return None
        shown = () if kind == "whole" else scene.regions
        spoken = [[expand(text, scene.regions) for text in turn] for turn in asked]
        for count in range(len(spoken), 0, -1):
            turns: list[Turn] = []
            for question, answer in spoken[:count]:
                turns += (Turn("user", question), Turn("assistant", answer))
            marked = MarkedImage(scene.image, shown, image)
            turns[0] = Turn("user", turns[0].text, (marked,))
            ids, labels = self.processor.encode_training(turns)
            if len(ids) <= self._length(kind):
                break
        else:
            return None
        views = [self.processor.geometry.fit(image)]
        views += [self._focal_view(scene.image, image, shown, region, rng) for region in shown]
        classes = [self.class_of[thing.label] for thing in scene.marked[: len(shown)]]
        names = mention_labels(scene, shown, ids, labels, self.processor)
        return views, ids, labels, names, classes

    def _length(self, kind: str) -> int:
        """Tokens of a row of this kind, views included."""
        words = self.settings.text_tokens[kind]
        if self.focal.named:
            marks = VIEWS[kind] - 1
            compared = marks > 1 and (self.focal.ranked or self.focal.told)
            words += self.settings.caption_tokens[compared] * marks
        return words + VIEWS[kind] * self.processor.tokens_per_view

    def _focal_view(
        self,
        photo: Image.Image,
        image: Image.Image,
        regions: Sequence[Region],
        region: Region,
        rng: np.random.Generator,
    ) -> Image.Image:
        settings = replace(
            self.focal,
            scale=float(rng.uniform(*self.settings.focal_scale)),
            point_share=self.focal.point_share * float(rng.uniform(0.75, 1.33)),
            minimum=self.focal.minimum * float(rng.uniform(0.7, 1.3)),
        )
        x, y, side = focal_square(region, image.size, settings)
        x, y = x + side * rng.uniform(-0.08, 0.08), y + side * rng.uniform(-0.08, 0.08)
        geometry, square = self.processor.geometry, (x, y, side)
        if settings.fine:
            image = fine_marks(photo, regions, square)
        return focal_view(image, square, geometry.size, geometry.fill)
