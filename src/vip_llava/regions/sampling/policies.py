"""The shapes and colours of the marks in each source of training data.

A `Policy` is the choice of shapes and the style of one source; `sample_visual_prompts` draws shape and
colour for the objects of one image so that phrases can distinguish them. The proportions are those of
the original's training data (ViP-LLaVA, arXiv 2312.00784, its data organizer).

This module does not know geometry: `marks` samples position and size.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vip_llava.errors import RegionError
from vip_llava.regions.colors import PALETTE

__all__ = [
    "POLICIES",
    "TRAINED_SHAPES",
    "Policy",
    "Style",
    "VisualPrompt",
    "find_policy",
    "generator",
    "sample_visual_prompts",
]

Style: TypeAlias = Literal["free", "constant"]
#: The shapes of the original's training data; the order fixes which one a random number selects.
TRAINED_SHAPES = ("box", "ellipse", "triangle", "point", "scribble", "arrow", "contour", "mask")


@dataclass(frozen=True, slots=True)
class Policy:
    """How one source of region data is marked.

    shapes: sampled uniformly. style: "constant" fixes the line width of boxes and the radius of
    points. color: one colour for all marks, or None to sample them.
    """

    name: str
    shapes: tuple[str, ...]
    style: Style = "free"
    color: str | None = None


@dataclass(frozen=True, slots=True)
class VisualPrompt:
    """Shape and colour of one mark. A colour without a name is an RGB triple."""

    shape: str
    color: str | tuple[int, int, int]

    @property
    def color_name(self) -> str | None:
        """The colour's name, or None for an RGB triple, for which phrases have no word."""
        return self.color if isinstance(self.color, str) else None


_TWO = ("box", "ellipse")
_POLICIES = (
    Policy("refcocog", TRAINED_SHAPES),
    Policy("refcocog-gpt4v", TRAINED_SHAPES),
    Policy("vcr", tuple(shape for shape in TRAINED_SHAPES if shape != "point")),
    Policy("vg_rel", _TWO),
    Policy("vg_rel-gpt4v", _TWO),
    Policy("flickr30k", (*_TWO, "arrow")),
    Policy("v7w", ("box",), "constant"),
    Policy("pointQA_twice", ("box",), "constant", "red"),
    # Selected by the prompt style of an evaluation, not by the source of the data.
    Policy("vcr_qa", ("point",), "constant"),
    Policy("vcr_qar", ("point",), "constant"),
)
#: Source -> its policy. A new source adds an entry to `_POLICIES`.
POLICIES: dict[str, Policy] = {each.name: each for each in _POLICIES}
_STYLES = ("vcr_qa", "vcr_qar")


def find_policy(source: str, visual_prompt_style: str | None = None) -> Policy:
    """The policy of a data source, or of the prompt style that overrides it.

    `source` is a name or the id of a row: "vcr", "vcr-1234", "refcocog-gpt4v-7". Raises RegionError
    for an unknown source or style.
    """
    if visual_prompt_style is not None:
        if visual_prompt_style not in _STYLES:
            raise RegionError(
                f"unknown visual prompt style {visual_prompt_style!r}; "
                f"known: {', '.join(_STYLES)} (or None)"
            )
        return POLICIES[visual_prompt_style]
    parts = source.replace("_gpt4v", "-gpt4v").split("-")
    for name in ("-".join(parts[:2]), parts[0]):
        if name in POLICIES:
            return POLICIES[name]
    raise RegionError(f"no policy for the data source {source!r}; known: {', '.join(POLICIES)}")


def generator(*key: int | str) -> random.Random:
    """A generator seeded by a key, for example (seed, epoch, row id).

    A row gets the same mark in every process, order and batch.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def sample_visual_prompts(policy: Policy, count: int, rng: random.Random) -> list[VisualPrompt]:
    """Shape and colour for `count` objects of one image.

    Shapes are independent. The colour of a shape that occurs once has a name with probability 1/2 and
    is any RGB value otherwise. Marks of a shape that occurs several times have different named
    colours, so that "the red ellipse" is unique. From the tenth of one shape on, colours are RGB.
    """
    shapes = [rng.choice(policy.shapes) for _ in range(count)]
    if policy.color is not None:
        return [VisualPrompt(shape, policy.color) for shape in shapes]
    times = Counter(shapes)
    unused: dict[str, list[str]] = {shape: list(PALETTE) for shape in times}
    return [_prompt(shape, times[shape] > 1, unused[shape], rng) for shape in shapes]


def _prompt(shape: str, shared: bool, unused: list[str], rng: random.Random) -> VisualPrompt:
    if unused and (shared or rng.random() < 0.5):
        name = rng.choice(unused)
        unused.remove(name)
        return VisualPrompt(shape, name)
    return VisualPrompt(shape, (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
