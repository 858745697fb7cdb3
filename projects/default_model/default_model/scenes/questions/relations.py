"""Relations of marked objects: sides, size, sameness. Decided from their boxes and labels."""

from __future__ import annotations

import numpy as np

from default_model.scenes.questions.choosing import lettered
from default_model.scenes.scene import Exchange, Scene, pick
from vip_llava.evaluation.coco_annotations import Rectangle
from vip_llava.prompting.focal_views import centre, view_remarks

# Two centres are apart on an axis if they differ by this fraction of the larger side, so that
# people would give the same answer.
_APART = 0.5
# Ratio of the areas from which one object is clearly larger.
_LARGER = 1.5


def side(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Left or right of, above or below: as a choice, or as a yes-or-no question."""
    if len(scene.marked) < 2:
        return None
    i, j = (int(k) for k in rng.permutation(len(scene.marked))[:2])
    a, b = scene.marked[i].box, scene.marked[j].box
    first, second = (f"<region:{scene.regions[k].id}>" for k in (i, j))
    axes = [axis for axis in (0, 1) if _apart(a, b, axis)]
    if not axes:
        return None
    axis = axes[int(rng.integers(len(axes)))]
    before = a[axis] + a[axis + 2] < b[axis] + b[axis + 2]
    size = scene.image.size
    places = [centre(scene.regions[k], size)[axis] for k in (i, j)]
    if (places[0] < places[1]) != before:  # the marks do not point at the centres
        return None
    words = (("left", "to the left of"), ("right", "to the right of"))
    if axis == 1:
        words = (("above", "above"), ("below", "below"))
    true_word = words[0] if before else words[1]
    if rng.random() < 0.5:
        choice = " or ".join(w for _, w in words)
        return f"Is {first} {choice} {second}?", true_word[0]
    asked = words[int(rng.integers(2))]
    return f"Is {first} {asked[1]} {second}?", "yes" if asked == true_word else "no"


# For each axis: the words for its low and its high end.
_FURTHEST = (
    (("further left", "the leftmost"), ("further right", "the rightmost")),
    (("higher up", "the highest"), ("lower", "the lowest")),
)


def further(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which one is further left, right, up or down; of more than two, which is furthest?

    The answer is the phrase of the mark, or its letter.
    """
    count, size = len(scene.marked), scene.image.size
    if count < 2:
        return None
    axis, end = (int(k) for k in rng.integers(2, size=2))
    # The first two at the wanted end, by what the marks point at. The objects must be apart, too.
    places = [centre(region, size)[axis] * (-1 if end else 1) for region in scene.regions]
    first, second = np.argsort(places, kind="stable")[:2].tolist()
    a, b = scene.marked[first].box, scene.marked[second].box
    before = a[axis] + a[axis + 2] < b[axis] + b[axis + 2]
    if not _apart(a, b, axis) or before == bool(end):
        return None
    return _which(scene, first, _FURTHEST[axis][end], rng)


def larger(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which of the two is larger, or smaller, in the image? Answered like `further`."""
    if len(scene.marked) != 2:
        return None
    areas = [_area(thing.box) for thing in scene.marked]
    if max(areas) < _LARGER * min(areas):
        return None
    words = pick(rng, ("bigger", "larger", "smaller"))
    best = int(np.argmin(areas) if words == "smaller" else np.argmax(areas))
    return _which(scene, best, (words, f"the {words} one"), rng)


def _which(scene: Scene, answer: int, words: tuple[str, str], rng: np.random.Generator) -> Exchange:
    """Which of the marked objects is it? words: of two ("further left"), of all ("the leftmost")."""
    marks = [f"<region:{region.id}>" for region in scene.regions]
    order = rng.permutation(len(marks)).tolist()
    if rng.random() < 0.3:
        return lettered(f"Which one is {words[1]}?", marks, answer, order)
    if len(marks) > 2 or rng.random() < 0.3:
        which = pick(rng, ("Which of the marked objects", "Which one", "Which marked object"))
        return f"{which} is {words[1]}?", marks[answer]
    asked = pick(rng, ("Which is {}, {} or {}?", "Which one is {}: {} or {}?"))
    return asked.format(words[0], *(marks[k] for k in order)), marks[answer]


def where(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Where is one of several, relative to the others? In the words of `view_remarks`."""
    if len(scene.marked) < 2:
        return None
    index = int(rng.integers(len(scene.marked)))
    remark = view_remarks(scene.regions, scene.image.size)[index]
    mark = f"<region:{scene.regions[index].id}>"
    question = pick(rng, (f"Where is {mark}?", f"Say where {mark} is."))
    if rng.random() < 0.5:
        return question + pick(rng, (" Answer in one sentence.", " Please use a sentence.")), remark
    return question, remark.partition(" is ")[2].rstrip(".")


def size(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Is one of two larger, or smaller, than the other? In the image."""
    if len(scene.marked) != 2:
        return None
    areas = [_area(thing.box) for thing in scene.marked]
    if max(areas) < _LARGER * min(areas):
        return None
    i, j = (int(k) for k in rng.permutation(2))
    first, second = (f"<region:{scene.regions[k].id}>" for k in (i, j))
    asked = pick(rng, ("bigger", "smaller", "larger"))
    true = (areas[i] > areas[j]) == (asked != "smaller")
    return f"Is {first} {asked} than {second}?", "yes" if true else "no"


def same_kind(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Are the two marked objects of the same class?"""
    if len(scene.marked) != 2:
        return None
    same = scene.marked[0].label == scene.marked[1].label
    if not same and rng.random() < 0.5:  # pairs of different objects are more frequent
        return None
    return "Are the two marked objects the same kind of thing?", "yes" if same else "no"


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _apart(a: Rectangle, b: Rectangle, axis: int) -> bool:
    distance = abs(a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
    return distance > _APART * max(a[axis + 2] - a[axis], b[axis + 2] - b[axis])
