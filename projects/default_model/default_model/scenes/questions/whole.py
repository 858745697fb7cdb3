"""Questions about the whole image: captions, presence, counts, the main object."""

from __future__ import annotations

import numpy as np

from default_model.scenes.scene import Exchange, Scene, pick
from default_model.scenes.words import plural, with_article

_NUMBERS = ("zero", "one", "two", "three", "four")


def caption(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """A request for a caption."""
    if not scene.captions:
        return None
    question = pick(
        rng,
        (
            "Describe the picture.",
            "Describe the image in one sentence.",
            "What is shown in the picture?",
            "What is in this picture?",
            "Write a caption for this photo.",
            "What is happening in the picture?",
        ),
    )
    return question, pick(rng, scene.captions).strip()


def presence(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Is there a ... in the image? Only for classes of which every object is labelled."""
    if not scene.exhaustive_for:
        return None
    here = sorted({t.label for t in scene.objects} & scene.exhaustive_for)
    absent = sorted(scene.exhaustive_for - {t.label for t in scene.objects})
    true = bool(here) and (rng.random() < 0.5 or not absent)
    word = pick(rng, tuple(here if true else absent))
    question = pick(rng, ("Is there {} in the picture?", "Do you see {} in the picture?"))
    return question.format(with_article(word)), "yes" if true else "no"


def how_many(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """How many ... are in the image? Up to four, for classes of which every object is labelled."""
    labels = [t.label for t in scene.objects]
    words = sorted({w for w in labels if w in scene.exhaustive_for and labels.count(w) < 5})
    if not words:
        return None
    word = pick(rng, tuple(words))
    return f"How many {plural(word)} are in the picture?", _NUMBERS[labels.count(word)]


def main_thing(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """What is the main object? For images of one object."""
    if len(scene.objects) != 1:
        return None
    question = pick(
        rng, ("What is the main object in the picture?", "What does the picture mainly show?")
    )
    return question, scene.objects[0].label
