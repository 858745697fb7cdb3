"""Selects the questions about a scene by the kind of its batch."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import numpy as np

from default_model.scenes.questions import choosing, marks, naming, relations, whole
from default_model.scenes.scene import Exchange, Scene, Task
from vip_llava.regions.phrases import placeholders


def exchanges(
    scene: Scene, tasks: list[Task], most: int, rng: np.random.Generator
) -> list[Exchange]:
    """Up to `most` different exchanges; the answer to a repeated question could be copied."""
    found: dict[Hashable, Exchange] = {}
    for _ in range(most if most == 1 else 2 * most):
        task = tasks[int(rng.integers(len(tasks)))]
        exchange = task(scene, rng)
        if exchange is not None and len(found) < most:
            found.setdefault((task, *_subject(task, *exchange)), exchange)
    return list(found.values())


def _subject(task: Task, question: str, answer: str) -> tuple[Hashable, ...]:
    """A key that is equal for two questions of a task that ask the same in other words."""
    asked = question.partition("\n")[0]
    marks = frozenset(placeholders(asked))
    if task is relations.side:  # both axes and both orders of two marks may be asked
        return marks, answer
    return (marks or asked.partition(" is ")[2],)


def tasks_of(kind: str, scene: Scene, words: tuple[str, ...], *, told: bool) -> list[Task]:
    """The tasks for a scene, each repeated by its frequency.

    words: labels for wrong options. told: whether captions say how several marks lie; then the
    tasks include the steps towards an answer.
    """
    if not scene.regions:
        if not scene.captions:
            return [whole.main_thing]
        return [*[whole.caption] * 5, whole.presence, whole.how_many, whole.main_thing]
    naming_one: list[Task] = [naming.name_one_of_many] * 3
    steps: list[Task] = []
    if kind == "two":
        steps = [relations.where] * 2 if told else []
        sides: list[Task] = [*[relations.side] * 4, *[relations.further] * 2]
        compared: list[Task] = [relations.size, relations.larger, relations.same_kind]
        return [*sides, *compared, *[marks.count_marks] * 2, *naming_one, *steps]
    if kind in ("three", "four"):
        steps = [relations.where, choosing.letter_of] if told else []
        places: list[Task] = [relations.side, relations.further]
        return [*[choosing.choose_region] * 6, *places, marks.count_marks, *naming_one, *steps]
    rare: list[Task] = [
        partial(naming.is_it, others=words),
        partial(choosing.choose_word, others=words),
        marks.mark_color,
        marks.mark_shape,
    ]
    return [*[naming.name_region] * 20, *rare]
