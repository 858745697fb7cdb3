"""What all sources of rows share: the marks of one row, their words, and where its images stand.

It deliberately does not know any one source, and it opens no image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from vip_llava.data.fields import BOX_PLACEHOLDER, Box, Outlines
from vip_llava.errors import DataError, RegionError
from vip_llava.prompting.turns import Turn
from vip_llava.regions.phrases import wording
from vip_llava.regions.resolve import resolve
from vip_llava.regions.sampling import Policy, VisualPrompt, sample_region, sample_visual_prompts
from vip_llava.regions.shapes import Region

__all__ = [
    "LETTER_REQUEST",
    "ArrangedRow",
    "Job",
    "Marks",
    "PromptStyle",
    "Thing",
    "listed",
    "mark",
    "named",
    "options",
    "talk",
    "with_words",
    "without_markers",
]

IMAGE = "<image>"
LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
_TRIES = 100

PromptStyle: TypeAlias = Literal["vcr_qa", "vcr_qar"]
#: A box in pixels of the photo, and the outlines of what is in it where they are known.
Thing: TypeAlias = tuple[Box, Outlines]


@dataclass(frozen=True, slots=True)
class ArrangedRow:
    """A row as it is trained: what is drawn on the photo, and the final text.

    Args:
        regions: resolved, in pixels of the photo.
        turns: without `<image>` markers; the row's images belong to the first user turn.
    """

    regions: tuple[Region, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What a row is arranged for: a photo of `size` (width, height) and one generator.

    alpha: opacity 0..255 of all marks, drawn where None. style: the form of VCR questions that
    evaluations use. images: the folder of the images, for sources that keep boxes beside them.
    """

    size: tuple[int, int]
    rng: random.Random
    alpha: int | None = None
    style: PromptStyle | None = None
    images: Path | None = None

    def chance(self) -> bool:
        """Heads or tails."""
        return self.rng.random() < 0.5


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of the groups of one image, one prompt for each group; all boxes of a group share it."""

    prompts: tuple[VisualPrompt, ...]
    regions: tuple[Region, ...]

    def words(self, group: int, *, article: bool = True) -> str:
        """ "within the red rectangle": the trained words for the mark of a group."""
        prompt = self.prompts[group]
        return wording(prompt.shape, named(prompt), article=article)


def named(prompt: VisualPrompt) -> str | None:
    """The colour's name, or None where the colour has none and so no word."""
    return prompt.color if isinstance(prompt.color, str) else None


def mark(
    job: Job,
    rule: Policy,
    groups: Sequence[Sequence[Thing]],
    *,
    field: str = "bboxes",
    numbers: Sequence[int] | None = None,
) -> Marks:
    """Marks for groups of things; words tell the groups apart. Ids are "1", "2", ... or "2.1", "2.2".

    numbers: the place of each group in `field`, where not all of it is marked.
    Raises DataError that names `field` for a box that lies outside the photo, and where there are
    more groups than shapes and named colours.
    """
    prompts = _prompts(rule, len(groups), job.rng, field)
    regions = []
    for number, (things, prompt) in enumerate(zip(groups, prompts, strict=True), 1):
        for part, (box, outlines) in enumerate(things, 1):
            try:
                regions.append(
                    sample_region(
                        box, outlines, size=job.size, rng=job.rng,
                        shape=prompt.shape, color=prompt.color, style=rule.style, alpha=job.alpha,
                        id=f"{number}" if len(things) == 1 else f"{number}.{part}",
                    )
                )  # fmt: skip
            except RegionError as error:
                place = number - 1 if numbers is None else numbers[number - 1]
                raise DataError(f"field {field}[{place}]: {error}") from None
    try:
        return Marks(tuple(prompts), resolve(regions, job.size).regions)
    except RegionError as error:
        raise DataError(f"field {field}: {error}") from None


def _prompts(rule: Policy, count: int, rng: random.Random, field: str) -> list[VisualPrompt]:
    """Prompts that are worded differently; beyond nine of one shape a draw may fail to be."""
    for _ in range(_TRIES):
        prompts = sample_visual_prompts(rule, count, rng)
        if len({(prompt.shape, named(prompt)) for prompt in prompts}) == count:
            return prompts
    raise DataError(f"field {field}: {count} things on one image can't be told apart by words")


def talk(*texts: str) -> tuple[Turn, ...]:
    """Alternating turns of user and assistant, beginning with the user."""
    return tuple(
        Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)
    )


def with_words(turns: Sequence[Turn], words: Sequence[str]) -> tuple[Turn, ...]:
    """Turns with `<bboxN>` replaced by the words of box N, and `<bbox>` by those of the only one."""
    return tuple(
        Turn(
            turn.role,
            BOX_PLACEHOLDER.sub(lambda found: words[int(found[1] or 0)], turn.text or ""),
        )
        for turn in turns
    )


def options(texts: Sequence[str]) -> str:
    """Lines "A. ...", "B. ..." and the request to answer with a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True)]
    return "\n".join([*lines, LETTER_REQUEST])


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b, and c"."""
    if len(words) < 3:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"


def without_markers(turns: Sequence[Turn], images: int) -> tuple[Turn, ...]:
    """Turns of a row with images, without their `<image>` markers.

    All images of a row are shown with its first user turn, wherever the markers stand. A row without
    images is returned as it is, so that its `<image>` stays text.

    Raises:
        DataError: a marker in an answer, or another number of markers than images where there are
            several.
    """
    if not images:
        return tuple(turns)
    texts = [turn.text or "" for turn in turns]
    counts = [text.count(IMAGE) for text in texts]
    for number, (turn, count) in enumerate(zip(turns, counts, strict=True), 1):
        if count and turn.role == "assistant":
            raise DataError(f"field conversations: turn {number}: an answer can't hold {IMAGE}")
    if images > 1 and sum(counts) not in (0, images):
        raise DataError(
            f"field conversations: there are {images} images and {sum(counts)} {IMAGE}; "
            "write one for each, or none"
        )
    return tuple(
        Turn(turn.role, text.replace(IMAGE, "").strip() if count else text)
        for turn, text, count in zip(turns, texts, counts, strict=True)
    )
