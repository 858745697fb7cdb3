"""Multiple choice (A-D): labels for a marked object, or marked objects for a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from default_model.scenes.scene import Exchange, Scene, pick
from default_model.scenes.words import with_article

_LETTERS = "ABCD"


def choose_word(
    scene: Scene, rng: np.random.Generator, *, others: tuple[str, ...]
) -> Exchange | None:
    """Which of four words names the marked object? The answer is a letter.

    others: words for the wrong options, except those of objects at the same place.
    """
    if len(scene.marked) != 1:
        return None
    label = scene.marked[0].label
    true = {label, *scene.shares(0)}
    wrong = [w for w in dict.fromkeys(rng.permutation(others[:80]).tolist()) if w not in true]
    if len(wrong) < 3:
        return None
    options, order = [label, *wrong[:3]], rng.permutation(4).tolist()
    question = pick(rng, ("What is <region:1>?", "Which word names <region:1>?", "What is this?"))
    return lettered(question, options, 0, order)


def choose_region(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which of the marked objects is the ...? The answer is a letter, or the phrase of the mark."""
    labels = [t.label for t in scene.marked]
    if len(labels) < 2 or len(labels) > len(_LETTERS):
        return None
    singles = [i for i, word in enumerate(labels) if labels.count(word) == 1]
    if not singles:
        return None
    target = singles[int(rng.integers(len(singles)))]
    word = with_article(labels[target])
    marks = [f"<region:{region.id}>" for region in scene.regions]
    if rng.random() < 0.75:
        order = rng.permutation(len(labels)).tolist()
        question = pick(rng, (f"Which one is {word}?", f"Which of the marked objects is {word}?"))
        return lettered(question, marks, target, order)
    return f"Which of the marked objects is {word}?", marks[target]


def letter_of(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which letter has a mark? This is the second step of `choose_region`, without the image."""
    if not 2 <= len(scene.marked) <= len(_LETTERS):
        return None
    target = int(rng.integers(len(scene.regions)))
    marks = [f"<region:{region.id}>" for region in scene.regions]
    order = rng.permutation(len(marks)).tolist()
    question = pick(rng, (f"Which one is {marks[target]}?", f"Which option is {marks[target]}?"))
    return lettered(question, marks, target, order)


def lettered(question: str, options: Sequence[str], answer: int, order: Sequence[int]) -> Exchange:
    """The question with its options in the given order and their letters; the answer is a letter."""
    lines = "\n".join(f"{_LETTERS[i]}. {options[j]}" for i, j in enumerate(order))
    asked = f"{question}\n{lines}\nAnswer with the letter of the right option."
    return asked, _LETTERS[list(order).index(answer)]
