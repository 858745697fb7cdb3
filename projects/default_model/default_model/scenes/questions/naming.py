"""What is the marked object? The answer is the label, or a sentence if one is asked for."""

from __future__ import annotations

import numpy as np

from default_model.scenes.scene import Exchange, Scene, pick
from default_model.scenes.words import plural, with_article

_QUESTIONS = (
    "What is <region:1>?",
    "What is <region:1>?",
    "What is <region:1>?",
    "What is the object <region:1>?",
    "What object is <region:1>?",
    "What is the thing <region:1>?",
    "What do you see <region:1>?",
    "Name <region:1>.",
    "Identify <region:1>.",
    "What kind of object is <region:1>?",
    "What class of object is <region:1>?",
    "Tell me what <region:1> is.",
    "What would you call <region:1>?",
    "Can you name <region:1>?",
    "What is marked here?",
    "What is this?",
    "What is the marked object?",
    "Which object is marked?",
    "What am I pointing at?",
)
_SHORT = (
    " Answer with a single word or phrase.",
    " Please provide a short phrase.",
    " Answer in a short phrase.",
    " Give only its name.",
    " Answer the question using a single word or phrase.",
)
_SENTENCE = (" Answer in one sentence.", " Answer in a full sentence.", " Please use a sentence.")


def name_region(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """A question about the only marked object."""
    if len(scene.marked) != 1:
        return None
    label = scene.marked[0].label
    question = pick(rng, _QUESTIONS)
    style = rng.random()
    if style < 0.65:
        return question, label
    if style < 0.9:
        return question + pick(rng, _SHORT), label
    return question + pick(rng, _SENTENCE), _sentence(label, scene, rng)


def _sentence(label: str, scene: Scene, rng: np.random.Generator) -> str:
    thing = with_article(label)
    verb = "are" if thing == label and plural(label) == label and label.endswith("s") else "is"
    if rng.random() < 0.5:
        return f"The object <region:{scene.regions[0].id}> {verb} {thing}."
    return f"This {verb} {thing}." if verb == "is" else f"These are {thing}."


def name_one_of_many(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """A question about one of several marked objects, by its mark."""
    if len(scene.marked) < 2:
        return None
    index = int(rng.integers(len(scene.marked)))
    mark = f"<region:{scene.regions[index].id}>"
    question = pick(rng, ("What is {}?", "Name {}.", "What is the object {}?", "Identify {}."))
    return question.format(mark), scene.marked[index].label


def is_it(scene: Scene, rng: np.random.Generator, *, others: tuple[str, ...]) -> Exchange | None:
    """Is the marked object a ...? Yes or no; others: words for wrong guesses."""
    if len(scene.marked) != 1:
        return None
    label = scene.marked[0].label
    true = rng.random() < 0.5
    word = label if true else pick(rng, others)
    if not true and (word == label or word in scene.shares(0)):
        return None
    question = pick(rng, ("Is <region:1> {}?", "Is this {}?", "Would you say <region:1> is {}?"))
    style = pick(rng, ("", " Answer yes or no.", ""))
    return question.format(with_article(word)) + style, "yes" if true else "no"
