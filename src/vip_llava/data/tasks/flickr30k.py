"""Flickr30k Entities: describe the image by its marked objects, with or without naming the marks."""

from __future__ import annotations

import re

from vip_llava.data.fields import BOX_PLACEHOLDER
from vip_llava.data.region_rows import Flickr30kRow
from vip_llava.data.tasks.common import ArrangedRow, TaskContext, alternate, mark
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


def arrange(row: Flickr30kRow, context: TaskContext) -> ArrangedRow:
    """Half of the answers name the marks; half of the questions list them."""
    phrases = [number for number, boxes in enumerate(row.bbox) if boxes]
    groups = [[(box, None) for box in row.bbox[number]] for number in phrases]
    marks = mark(context, POLICIES[row.kind], groups, field="bbox", numbers=phrases)
    names_marks = context.coin()
    question = context.rng.choice(_NAMING if names_marks else _PLAIN)
    if groups and context.coin():
        hint = context.rng.choice(_HINTS)
        question += " " + hint.format(_join([_noun(prompt) for prompt in marks.prompts]))
    named = dict(zip(phrases, marks.phrases(), strict=True)) if names_marks else {}
    return ArrangedRow(marks.regions, alternate(question, _caption(row.grounding, named)))


def _noun(prompt: VisualPrompt) -> str:
    """ "the red ellipse", "the arrow"."""
    return " ".join(["the", *filter(None, [prompt.color_name]), SHAPES[prompt.shape].words[1]])


def _join(nouns: list[str]) -> str:
    """ "a", "a, and b", "a, b, and c", with the comma of the training texts."""
    return ", and ".join(filter(None, [", ".join(nouns[:-1]), nouns[-1]]))


def _caption(grounding: str, named: dict[int, str]) -> str:
    """The caption as a sentence, with placeholders replaced by phrases or dropped."""
    text = BOX_PLACEHOLDER.sub(lambda match: f" {named.get(int(match[1]), '')} ", grounding)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
