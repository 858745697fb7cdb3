"""How two marked things relate: sides, size, sameness. Decided from their boxes and words."""

from __future__ import annotations

import numpy as np

from vip_llava.data.scenes.scene import Exchange, Scene, pick
from vip_llava.model.focal import centre, view_remarks

# Two centres count as apart on an axis when they differ by this share of the larger side, so that
# the answer is one that people would give too.
_APART = 0.5


def side(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Left or right of, above or below: as a choice or as yes or no."""
    if len(scene.marked) != 2:
        return None
    i, j = (int(k) for k in rng.permutation(2))
    a, b = scene.marked[i].box, scene.marked[j].box
    first, second = (f"<region:{scene.regions[k].id}>" for k in (i, j))
    axes = [axis for axis in (0, 1) if _apart(a, b, axis)]
    if not axes:
        return None
    axis = axes[int(rng.integers(len(axes)))]
    before = a[axis] + a[axis + 2] < b[axis] + b[axis + 2]
    size = scene.picture.size
    places = [centre(scene.regions[k], size)[axis] for k in (i, j)]
    if (places[0] < places[1]) != before:  # marks that point elsewhere than at the middle
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


def where(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """How one of several lies to the others, in the words of `view_remarks`."""
    if len(scene.marked) < 2:
        return None
    index = int(rng.integers(len(scene.marked)))
    remark = view_remarks(scene.regions, scene.picture.size)[index]
    mark = f"<region:{scene.regions[index].id}>"
    question = pick(rng, (f"Where is {mark}?", f"Say where {mark} is."))
    if rng.random() < 0.5:
        return question + pick(rng, (" Answer in one sentence.", " Please use a sentence.")), remark
    return question, remark.partition(" is ")[2].rstrip(".")


def size(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Which of the two is larger in the picture?"""
    if len(scene.marked) != 2:
        return None
    areas = [(t.box[2] - t.box[0]) * (t.box[3] - t.box[1]) for t in scene.marked]
    if max(areas) < 1.5 * min(areas):
        return None
    i, j = (int(k) for k in rng.permutation(2))
    first, second = (f"<region:{scene.regions[k].id}>" for k in (i, j))
    asked = pick(rng, ("bigger", "smaller", "larger"))
    true = (areas[i] > areas[j]) == (asked != "smaller")
    return f"Is {first} {asked} than {second}?", "yes" if true else "no"


def same_kind(scene: Scene, rng: np.random.Generator) -> Exchange | None:
    """Are the two the same kind of thing?"""
    if len(scene.marked) != 2:
        return None
    same = scene.marked[0].label == scene.marked[1].label
    if not same and rng.random() < 0.5:  # different pairs are the more common ones
        return None
    return "Are the two marked objects the same kind of thing?", "yes" if same else "no"


def _apart(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float], axis: int
) -> bool:
    distance = abs(a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
    return distance > _APART * max(a[axis + 2] - a[axis], b[axis + 2] - b[axis])
