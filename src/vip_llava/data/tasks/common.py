"""What tasks share: the marks of a row, their phrases, and the removal of `<image>` markers.

The module does not know any data source, and it opens no image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from vip_llava.data.fields import BOX_PLACEHOLDER, Box, BoxesRow, Outlines
from vip_llava.errors import DataError, RegionError
from vip_llava.prompting.turns import Turn
from vip_llava.regions.phrases import wording
from vip_llava.regions.resolve import resolve
from vip_llava.regions.sampling import Policy, VisualPrompt, sample_region, sample_visual_prompts
from vip_llava.regions.shapes import Region

__all__ = [
    "LETTER_REQUEST",
    "ArrangedRow",
    "Marks",
    "PromptStyle",
    "TaskContext",
    "alternate",
    "join_phrases",
    "mark",
    "mark_boxes",
    "options",
    "remove_image_markers",
    "replace_boxes",
]

IMAGE = "<image>"
LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
_TRIES = 100

PromptStyle: TypeAlias = Literal["vcr_qa", "vcr_qar"]


@dataclass(frozen=True, slots=True)
class ArrangedRow:
    """A row as training uses it: the regions to draw and the final text.

    Attributes:
        regions: resolved, in pixels of the image.
        turns: without `<image>` markers; the row's images belong to the first user turn.
    """

    regions: tuple[Region, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The arguments of a task besides the row.

    Attributes:
        size: (width, height) of the image in pixels.
        rng: the only source of randomness.
        alpha: opacity 0..255 of all marks; None samples it.
        style: the form of VCR questions in evaluations; None for training.
        images: the folder of images, for sources whose boxes are in files there.
    """

    size: tuple[int, int]
    rng: random.Random
    alpha: int | None = None
    style: PromptStyle | None = None
    images: Path | None = None

    def coin(self) -> bool:
        """True with probability 1/2."""
        return self.rng.random() < 0.5


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks on one image: a visual prompt for each group of boxes, and their regions."""

    prompts: tuple[VisualPrompt, ...]
    regions: tuple[Region, ...]

    def phrase(self, group: int, *, article: bool = True) -> str:
        """The trained phrase for the mark of a group: "within the red rectangle"."""
        prompt = self.prompts[group]
        return wording(prompt.shape, prompt.color_name, article=article)

    def phrases(self) -> list[str]:
        """The phrases of all groups."""
        return [self.phrase(group) for group in range(len(self.prompts))]


def mark_boxes(context: TaskContext, policy: Policy, row: BoxesRow) -> Marks:
    """A mark of its own for each box of a row."""
    return mark(context, policy, [[each] for each in row.objects])


def mark(
    context: TaskContext,
    policy: Policy,
    groups: Sequence[Sequence[tuple[Box, Outlines]]],
    *,
    field: str = "bboxes",
    numbers: Sequence[int] | None = None,
) -> Marks:
    """Marks whose phrases distinguish groups of objects. Ids are "1", "2", ... or "2.1", "2.2".

    Args:
        context: image size, generator and opacity.
        policy: the shapes and colours to sample from.
        groups: objects (box in pixels, outlines if known) that share one visual prompt.
        field: of the row, for messages.
        numbers: the index of each group in `field`, if the row has unmarked ones.

    Raises:
        DataError: a box outside the image, or more groups than distinct phrases; names `field`.
    """
    prompts = _distinct_prompts(policy, len(groups), context.rng, field)
    regions = []
    for number, (objects, prompt) in enumerate(zip(groups, prompts, strict=True), 1):
        for part, (box, outlines) in enumerate(objects, 1):
            try:
                regions.append(
                    sample_region(
                        box, outlines, size=context.size, rng=context.rng, shape=prompt.shape,
                        color=prompt.color, style=policy.style, alpha=context.alpha,
                        id=f"{number}" if len(objects) == 1 else f"{number}.{part}",
                    )
                )  # fmt: skip
            except RegionError as error:
                index = number - 1 if numbers is None else numbers[number - 1]
                raise DataError(f"field {field}[{index}]: {error}") from None
    try:
        return Marks(tuple(prompts), resolve(regions, context.size).regions)
    except RegionError as error:
        raise DataError(f"field {field}: {error}") from None


def _distinct_prompts(
    policy: Policy, count: int, rng: random.Random, field: str
) -> list[VisualPrompt]:
    """Prompts with distinct phrases; from the tenth of one shape on, a sample may repeat one."""
    for _ in range(_TRIES):
        prompts = sample_visual_prompts(policy, count, rng)
        if len({(prompt.shape, prompt.color_name) for prompt in prompts}) == count:
            return prompts
    raise DataError(f"field {field}: no distinct phrases for {count} objects on one image")


def alternate(*texts: str) -> tuple[Turn, ...]:
    """Alternating turns of user and assistant, beginning with the user."""
    return tuple(
        Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)
    )


def replace_boxes(turns: Sequence[Turn], phrases: Sequence[str]) -> tuple[Turn, ...]:
    """Turns with `<bboxN>` replaced by the phrase of box N, and `<bbox>` by that of the only one."""
    return tuple(
        Turn(
            turn.role,
            BOX_PLACEHOLDER.sub(lambda match: phrases[int(match[1] or 0)], turn.text or ""),
        )
        for turn in turns
    )


def options(texts: Sequence[str]) -> str:
    """Lines "A. ...", "B. ..." and the request to answer with a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True)]
    return "\n".join([*lines, LETTER_REQUEST])


def join_phrases(phrases: Sequence[str]) -> str:
    """ "a", "a and b", "a, b, and c"."""
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{', '.join(phrases[:-1])}, and {phrases[-1]}"


def remove_image_markers(turns: Sequence[Turn], images: int) -> tuple[Turn, ...]:
    """Turns of a row with images, without their `<image>` markers.

    All images of a row are shown with its first user turn, wherever the markers stand. A row without
    images is returned unchanged, so that its `<image>` stays text.

    Raises:
        DataError: a marker in an answer, or a number of markers that differs from that of several
            images.
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
