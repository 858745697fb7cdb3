"""Which shapes and colours the training data of each source is marked with.

A `Policy` is one source's choice of shapes and its style; `sample_prompts` draws shape and colour for
the things of one image so that words can tell them apart. Shares are those of the original's
training data (ViP-LLaVA, arXiv 2312.00784, its data organizer).

It deliberately does not know geometry: where and how large a mark is drawn is `draws.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from vip_llava.errors import RegionError
from vip_llava.regions.colors import PALETTE
from vip_llava.regions.shapes import SHAPES

__all__ = ["POLICIES", "Policy", "Prompt", "Style", "generator", "policy", "sample_prompts"]

Style: TypeAlias = Literal["free", "constant"]
_ALL = tuple(SHAPES)


@dataclass(frozen=True, slots=True)
class Policy:
    """How one source of region data is marked.

    shapes: drawn with equal chance. style: "constant" fixes the line width of boxes and the radius of
    points. color: one colour for all marks, or None to draw them.
    """

    name: str
    shapes: tuple[str, ...]
    style: Style = "free"
    color: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Shape and colour of one mark; a colour without a name is an RGB triple."""

    shape: str
    color: str | tuple[int, int, int]


_TWO = ("box", "ellipse")
_POLICIES = (
    Policy("refcocog", _ALL),
    Policy("refcocog-gpt4v", _ALL),
    Policy("vcr", tuple(shape for shape in _ALL if shape != "point")),
    Policy("vg_rel", _TWO),
    Policy("vg_rel-gpt4v", _TWO),
    Policy("flickr30k", (*_TWO, "arrow")),
    Policy("v7w", ("box",), "constant"),
    Policy("pointQA_twice", ("box",), "constant", "red"),
    # Chosen by the prompt style of an evaluation, not by the source of the data.
    Policy("vcr_qa", ("point",), "constant"),
    Policy("vcr_qar", ("point",), "constant"),
)
POLICIES: Mapping[str, Policy] = MappingProxyType({each.name: each for each in _POLICIES})
_STYLES = ("vcr_qa", "vcr_qar")


def policy(source: str, visual_prompt_style: str | None = None) -> Policy:
    """The policy of a data source, or of the prompt style that overrides it.

    `source` is a name or a row's id: "vcr", "vcr-1234", "refcocog-gpt4v-7". Raises RegionError for
    an unknown source or style.
    """
    if visual_prompt_style is not None:
        if visual_prompt_style not in _STYLES:
            raise RegionError(
                f"unknown visual prompt style {visual_prompt_style!r}; known: {', '.join(_STYLES)} (or None)"
            )
        return POLICIES[visual_prompt_style]
    parts = source.replace("_gpt4v", "-gpt4v").split("-")
    for name in ("-".join(parts[:2]), parts[0]):
        if name in POLICIES:
            return POLICIES[name]
    raise RegionError(f"no policy for the data source {source!r}; known: {', '.join(POLICIES)}")


def generator(*key: int | str) -> random.Random:
    """A generator that depends on the key alone, for example (seed, epoch, row id).

    The same row gets the same mark whatever process, order or batch it is drawn in.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def sample_prompts(rule: Policy, count: int, rng: random.Random) -> list[Prompt]:
    """Shape and colour for `count` things of one image.

    Shapes are independent. Where a shape is used once, its colour has a name with chance 1/2 and is
    any RGB otherwise; where it is used more than once, each has another named colour, so that "the
    red ellipse" is one thing. Beyond nine of one shape the names are used up and colours are random.
    """
    shapes = [rng.choice(rule.shapes) for _ in range(count)]
    if rule.color is not None:
        return [Prompt(shape, rule.color) for shape in shapes]
    times = Counter(shapes)
    unused: dict[str, list[str]] = {shape: list(PALETTE) for shape in times}
    return [_prompt(shape, times[shape] > 1, unused[shape], rng) for shape in shapes]


def _prompt(shape: str, shared: bool, unused: list[str], rng: random.Random) -> Prompt:
    if unused and (shared or rng.random() < 0.5):
        name = rng.choice(unused)
        unused.remove(name)
        return Prompt(shape, name)
    return Prompt(shape, (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
