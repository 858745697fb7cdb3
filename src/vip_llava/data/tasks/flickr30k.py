"""Flickr30k Entities: describe the image by its marked things, with or without naming the marks."""

from __future__ import annotations

import re
from collections.abc import Callable

from vip_llava.data.fields import BOX_PLACEHOLDER
from vip_llava.data.records import Flickr30kRow
from vip_llava.data.tasks.common import ArrangedRow, Job, Marks, mark, named, talk
from vip_llava.regions.sampling import POLICIES, VisualPrompt
from vip_llava.regions.shapes import SHAPES

__all__ = ["arrange"]

_DESCRIBE = "Please describe the image with the object referred to by the visual prompts; "
_NAMING = (
    _DESCRIBE + "make sure to mention both the actual visual prompt and the semantic category.",
    _DESCRIBE + "make sure to mention both the actual visual prompt, such as a red box, and the "
    "semantic category, such as a dog.",
)
_PLAIN = (
    _DESCRIBE + "please do not mention the actual visual prompt.",
    "Describe the provided image using the semantic object referred to by the visual prompts. "
    "Please produce a sentence in natural language, and do not mention the actual visual prompts.",
)
_HINTS = ("Hint: the visual prompts are: {}.", "The visual prompts are: {}.")


def arrange(row: Flickr30kRow, job: Job) -> ArrangedRow:
    """Half of the answers name the marks, half of the questions list them."""
    phrases = [number for number, boxes in enumerate(row.bbox) if boxes]
    groups = [[(box, None) for box in row.bbox[number]] for number in phrases]
    marks = mark(job, POLICIES[row.kind], groups, field="bbox", numbers=phrases)
    naming = job.chance()
    question = job.rng.choice(_NAMING if naming else _PLAIN)
    if groups and job.chance():
        hint = job.rng.choice(_HINTS)
        question += " " + hint.format(_list([_noun(prompt) for prompt in marks.prompts]))
    words = _worder(marks, phrases) if naming else lambda number: ""
    return ArrangedRow(marks.regions, talk(question, _caption(row.grounding, words)))


def _worder(marks: Marks, phrases: list[int]) -> Callable[[int], str]:
    place = {number: group for group, number in enumerate(phrases)}
    return lambda number: marks.words(place[number]) if number in place else ""


def _noun(prompt: VisualPrompt) -> str:
    """ "the red ellipse", "the arrow"."""
    return " ".join(["the", *filter(None, [named(prompt)]), SHAPES[prompt.shape].words[1]])


def _list(words: list[str]) -> str:
    """ "a", "a, and b", "a, b, and c": the comma of the training texts."""
    return ", and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _caption(grounding: str, words: Callable[[int], str]) -> str:
    """The caption as a sentence, each placeholder replaced by words or dropped."""
    text = BOX_PLACEHOLDER.sub(lambda found: f" {words(int(found[1]))} ", grounding)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
