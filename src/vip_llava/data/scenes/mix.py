"""The default model's training mix: batches of scenes with marks, questions and answers.

A batch is made whole from (seed, number) alone, so any worker can make any batch and a resumed run
sees the same data. All rows of a batch have the same number of views: "one" (whole picture and one
focal view), "two", "four" (that many marked things) or "whole" (no geometry: marks that are only
drawn, captions, presence). It deliberately does not know the model or the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from vip_llava.data.scenes.augment import AugmentSettings, augment
from vip_llava.data.scenes.marking import mark
from vip_llava.data.scenes.mentions import IGNORED, mention_names
from vip_llava.data.scenes.mosaic import mosaic
from vip_llava.data.scenes.photos import Photo, Thing
from vip_llava.data.scenes.questions import choosing, marks, naming, relations, whole
from vip_llava.data.scenes.scene import Exchange, Scene, Task, overlap
from vip_llava.errors import DataError, RegionError
from vip_llava.model.focal import FocalSettings, fine_marks, focal_square, focal_view
from vip_llava.model.processor import Conversation, Processor
from vip_llava.model.templates import Message
from vip_llava.regions import Region, draw
from vip_llava.regions.phrases import expand

Row = tuple[list[Image.Image], list[int], list[int], list[int], list[int]]
"""Views, ids, labels, names of mentions, and the class of the thing in each focal view."""
VIEWS = {"whole": 1, "one": 2, "two": 3, "four": 5}
MARKED = {"whole": 1, "one": 1, "two": 2, "four": 4}


@dataclass(frozen=True)
class MixSettings:
    """Shares and sizes of the batches, and where their scenes come from."""

    shares: dict[str, float] = field(
        default_factory=lambda: {"one": 0.66, "whole": 0.14, "two": 0.10, "four": 0.10}
    )
    rows: dict[str, int] = field(
        default_factory=lambda: {"one": 256, "whole": 448, "two": 144, "four": 80}
    )
    text_tokens: dict[str, int] = field(
        default_factory=lambda: {"one": 62, "whole": 63, "two": 151, "four": 293}
    )
    turns: dict[str, int] = field(
        default_factory=lambda: {"one": 1, "whole": 1, "two": 3, "four": 4}
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


class RegionMix:
    """Makes training batches from photos with labelled things and packs of single photos."""

    def __init__(
        self,
        photos: Sequence[Photo],
        singles: Sequence[Photo],
        processor: Processor,
        focal: FocalSettings,
        settings: MixSettings | None = None,
        seed: int = 0,
    ) -> None:
        """`photos` may hold several things each, `singles` one; `focal` is how marks are looked at.

        Raises DataError where no photo has a labelled thing.
        """
        self.photos, self.singles = list(photos), list(singles)
        self.processor, self.focal = processor, focal
        self.settings, self.seed = settings or MixSettings(), seed
        self.places = [
            (p, t) for p, photo in enumerate(self.photos) for t in range(len(photo.things))
        ]
        if not self.places:
            raise DataError("no photo with labelled things to train on")
        labels = [self.photos[p].things[t].label for p, t in self.places]
        self.words = tuple(word for word, _ in Counter(labels).most_common(120))
        self.chance = _chances(labels, self.settings.label_power)
        self.single_chance = _chances([s.things[0].label for s in self.singles], -0.5)
        self.captioned = [p for p, photo in enumerate(self.photos) if photo.captions]
        self.classes = sorted({*labels, *(s.things[0].label for s in self.singles)})
        self.class_of = {word: i for i, word in enumerate(self.classes)}
        self.decoded: dict[int, Image.Image] = {}

    def decode_all(self) -> None:
        """Decode every photo once, before workers are forked, so that they share the pixels."""
        with ThreadPoolExecutor(16) as pool:
            self.decoded = dict(enumerate(pool.map(Photo.open, self.photos)))

    def kind_of(self, number: int) -> str:
        """Which kind batch `number` is."""
        rng = np.random.default_rng((self.seed, number, 0))
        kinds = list(self.settings.shares)
        chances = np.array([self.settings.shares[k] for k in kinds])
        return kinds[int(rng.choice(len(kinds), p=chances / chances.sum()))]

    def batch(self, number: int) -> dict[str, Any]:
        """Batch `number`: `views` uint8 [B, V, S, S, 3], `input_ids` and `labels` int64 [B, T].

        `names` int64 [B, T]: see `mention_names`. `classes` [B, V - 1]: those of the things in the
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

    def _row(self, kind: str, rng: np.random.Generator) -> Row:
        # A scene may have nothing to ask, or too much to say: draw another; bounded, so that a
        # mistake in a task shows as an error instead of a hang.
        for _ in range(200):
            scene = self._scene(kind, rng)
            if scene is None:
                continue
            exchanges = self._exchanges(kind, scene, rng)
            row = self._encoded(kind, scene, exchanges, rng) if exchanges else None
            if row is not None:
                return row
        raise RuntimeError(f"no scene of kind {kind!r} could be made in 200 tries")

    def _exchanges(self, kind: str, scene: Scene, rng: np.random.Generator) -> list[Exchange]:
        """Different questions about a scene: one twice would be answered by looking back."""
        found: dict[str, Exchange] = {}
        most = self.settings.turns[kind]
        for _ in range(most if most == 1 else 2 * most):
            exchange = self._exchange(kind, scene, rng)
            if exchange is not None and len(found) < most:
                # "Which one is a dog?" is the same in other words and with options in another order.
                found.setdefault(exchange[0].partition("\n")[0].rpartition(" is ")[2], exchange)
        return list(found.values())

    def _encoded(
        self, kind: str, scene: Scene, exchanges: Sequence[Exchange], rng: np.random.Generator
    ) -> Row | None:
        """The row of a scene and as much of what is said about it as there is room for.

        None where it can't be drawn, or not even one question fits.
        """
        try:
            picture = draw(scene.picture, scene.regions) if scene.regions else scene.picture
        except RegionError:  # a random mark that would not be seen: its line is off the picture
            return None
        shown = () if kind == "whole" else scene.regions
        spoken = [[expand(text, scene.regions) for text in turn] for turn in exchanges]
        for count in range(len(spoken), 0, -1):
            messages: list[Message] = []
            for question, answer in spoken[:count]:
                messages += (Message("user", question), Message("assistant", answer))
            conversation = Conversation(tuple(messages), picture, shown)
            ids, labels = self.processor.encode_training(conversation)
            if len(ids) <= self._length(kind):
                break
        else:
            return None
        views = [self.processor.geometry.fit(picture)]
        views += [self._focal_view(scene.picture, picture, shown, region, rng) for region in shown]
        classes = [self.class_of[thing.label] for thing in scene.marked[: len(shown)]]
        names = mention_names(scene, shown, ids, labels, self.processor)
        return views, ids, labels, names, classes

    def _length(self, kind: str) -> int:
        """Tokens of a row of this kind, its views included."""
        words = self.settings.text_tokens[kind]
        if self.focal.named:
            marks = VIEWS[kind] - 1
            compared = marks > 1 and (self.focal.ranked or self.focal.told)
            words += self.settings.caption_tokens[compared] * marks
        return words + VIEWS[kind] * self.processor.tokens_per_view

    def _focal_view(
        self,
        photo: Image.Image,
        picture: Image.Image,
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
        x, y, side = focal_square(region, picture.size, settings)
        x, y = x + side * rng.uniform(-0.08, 0.08), y + side * rng.uniform(-0.08, 0.08)
        geometry, square = self.processor.geometry, (x, y, side)
        if settings.fine:
            picture = fine_marks(photo, regions, square)
        return focal_view(picture, square, geometry.size, geometry.fill)

    def _scene(self, kind: str, rng: np.random.Generator) -> Scene | None:
        """A scene of a kind, from one of its sources by lot; None where the draw came to nothing."""
        chance = rng.random()
        if chance < self.settings.mosaic_share:
            picture, things = mosaic(partial(self._tile, rng), rng)
            chosen = rng.permutation(len(things))[: MARKED[kind]].tolist()
            if len(chosen) < MARKED[kind]:
                return None
            return self._marked(picture, things, chosen, rng)
        single = self.settings.mosaic_share + self.settings.single_share
        if self.singles and chance < single and kind in ("one", "whole"):
            return self._single_scene(kind, rng)
        if kind == "whole" and self.captioned and rng.random() < 0.55:
            return self._captioned_scene(rng)
        return self._photo_scene(MARKED[kind], rng)

    def _single_scene(self, kind: str, rng: np.random.Generator) -> Scene | None:
        """A photo of one thing: marked, or shown without a mark in half of the "whole" rows."""
        photo = self.singles[int(self.single_chance.searchsorted(rng.random()))]
        picture, moved = augment(photo.open(), photo.things, (0,), rng, self.settings.augment)
        things = [t for t in moved if t]
        if kind == "whole" and rng.random() < 0.5:
            return Scene(picture, tuple(things), (), ())
        return self._marked(picture, things, [0], rng) if things else None

    def _captioned_scene(self, rng: np.random.Generator) -> Scene:
        """A photo with captions and without marks, hardly cropped, so that its captions stay true."""
        number = self.captioned[int(rng.integers(len(self.captioned)))]
        photo = self.photos[number]
        gentle = replace(self.settings.augment, smallest_window=0.9, zoom_out_share=0.0)
        picture, moved = augment(self._open(number), photo.things, (), rng, gentle)
        complete = photo.exhaustive_for if all(moved) else frozenset()
        return Scene(picture, tuple(t for t in moved if t), (), (), photo.captions, complete)

    def _photo_scene(self, count: int, rng: np.random.Generator) -> Scene | None:
        number, first = self.places[int(self.chance.searchsorted(rng.random()))]
        photo = self.photos[number]
        chosen = [first]
        for other in rng.permutation(len(photo.things)).tolist():
            apart = all(overlap(photo.things[other].box, photo.things[c].box) < 0.4 for c in chosen)
            if len(chosen) < count and apart:
                chosen.append(other)
        if len(chosen) < count:
            return None
        settings = self.settings.augment
        picture, moved = augment(self._open(number), photo.things, chosen, rng, settings)
        marked = [thing for thing in (moved[c] for c in chosen) if thing]
        if len(marked) < len(chosen):
            return None
        kept = [t for t in moved if t]
        return self._marked(picture, kept, [kept.index(thing) for thing in marked], rng)

    def _marked(
        self, picture: Image.Image, things: list[Thing], chosen: list[int], rng: np.random.Generator
    ) -> Scene:
        marked = tuple(things[c] for c in chosen)
        order = rng.permutation(len(marked))  # the first region is not always the first one chosen
        marked = tuple(marked[i] for i in order)
        regions = mark(marked, picture.size, rng, self.settings.shape_weights)
        return Scene(picture, tuple(things), marked, regions)

    def _exchange(self, kind: str, scene: Scene, rng: np.random.Generator) -> Exchange | None:
        tasks = self._tasks(kind)
        if not scene.regions:
            others: list[Task] = [whole.presence, whole.how_many, whole.main_thing]
            tasks = [*[whole.caption] * 5, *others] if scene.captions else [whole.main_thing]
        return tasks[int(rng.integers(len(tasks)))](scene, rng)

    def _tasks(self, kind: str) -> list[Task]:
        naming_one = [naming.name_one_of_many] * 3
        # Steps on the way to an answer, for models that are told where marks lie.
        told = self.focal.told
        if kind == "two":
            steps = [relations.where] * 2 if told else []
            sides = [relations.side] * 5
            others = [relations.size, relations.same_kind, marks.count_marks]
            return [*sides, *others, *naming_one, *steps]
        if kind == "four":
            steps = [relations.where, choosing.letter_of] if told else []
            return [*[choosing.choose_region] * 5, marks.count_marks, *naming_one, *steps]
        rare: list[Task] = [
            partial(naming.is_it, others=self.words),
            partial(choosing.choose_word, others=self.words),
            marks.mark_color,
            marks.mark_shape,
        ]
        return [*[naming.name_region] * 20, *rare]

    def _tile(self, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """A mosaic's tile: a single photo, or a thing cut out of a photo with some surroundings."""
        if self.singles and rng.random() < 0.55:
            photo = self.singles[int(self.single_chance.searchsorted(rng.random()))]
            return photo.open(), photo.things[0].label
        number, index = self.places[int(self.chance.searchsorted(rng.random()))]
        thing, source = self.photos[number].things[index], self._open(number)
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
    """Cumulative chance of each item, by the count of its label to a power."""
    counts = Counter(labels)
    weight = np.array([counts[label] ** power for label in labels], np.float64)
    return np.cumsum(weight / weight.sum()) if len(weight) else weight
