"""Convert between `<region:ID>` in a text and the phrases that the model was trained on.

A phrase is preposition + article + colour + shape: "within the red rectangle", "at the point",
"pointed to by the lime arrow". The words are those of the original ViP-LLaVA training texts. A
colour without one of the nine names has no word in those texts, so it has none here.

* A placeholder stands for an object. After a noun it becomes the bare phrase ("the person
  <region:1>" -> "the person within the red rectangle"), elsewhere a whole noun phrase ("Is <region:1>
  bigger?" -> "Is the object within the red rectangle bigger?"); "object" is the noun of the
  training texts.
* Regions with the same phrase are distinguished by position: "the left red rectangle", "the upper
  point", and from three on "the second red rectangle from the left". The model was not trained on
  those words, so prefer different colours (`resolve` assigns different ones).
* `collapse` is the inverse. For a text that `collapse` leaves unchanged,
  `collapse(expand(text, regions), regions) == text`.

This module does not know images, tokenizers or chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vip_llava.errors import PhraseError
from vip_llava.regions.colors import color_name
from vip_llava.regions.shapes import SHAPES, Arrow, Region

__all__ = ["collapse", "expand", "phrase", "placeholders", "wording"]

PLACEHOLDER = re.compile(r"<region:([^<>\s]+)>")
# Text that begins like a placeholder, in any case. If it is not one, it is a user's mistake.
_ATTEMPT = re.compile(r"<\s*region(?![a-z_])", re.IGNORECASE)

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
# Words right before a noun. "this" and "what" are left out: they often replace the noun.
_DETERMINERS = "the a an every another my your his her its our their"
# Nouns that may precede a placeholder without an article, also after adjectives.
_NOUNS = """
object objects instance instances thing things item items subject region area part place spot one
person people man men woman women child children boy girl guy lady player animal dog cat horse
bird car bus truck bicycle motorcycle train boat plane chair table sofa bed building house tree
food plate cup bottle ball bag hat shirt sign phone
"""
# Words that follow a determiner but are no nouns: "the left of <region:1>" needs a noun phrase.
_NOT_NOUNS = """
is are was were be been do does did has have had can could will would shall should may might must
of in on at to by for from with within into onto over under above below behind between beside near
like than as and or not but if when while left right same most least more less
"""
_GLUED = re.compile(r"(?:\w|<region:[^<>\s]+>)$")
_PREFIX = re.compile(r"(?:(\w+)\s+)?(\w+)\s+$")


def wording(shape: str, color: str | None = None, *, article: bool = True, place: str = "") -> str:
    """The phrase for a shape ("box", "arrow", ...) and a colour name or None.

    `place` is a word before the colour ("left"), or words around colour and shape separated by
    dots: "second ... from the left". Without `article` the phrase is the shorter of the two trained
    forms, "within red rectangle". Raises PhraseError for an unknown shape.
    """
    if shape not in SHAPES:
        raise PhraseError(f"no phrase for the shape {shape!r}; known: {', '.join(SHAPES)}")
    preposition, noun = SHAPES[shape].words
    before, _, after = place.partition(" ... ")
    words = [preposition, "the" if article else "", before, color or "", noun, after]
    return " ".join(word for word in words if word)


def phrase(region: Region, others: Iterable[Region] = ()) -> str:
    """ "within the red rectangle" for one region; `others` are the regions drawn beside it.

    Regions are in pixels (as `resolve` gives them). Raises PhraseError if another region has the
    same words and the same position.
    """
    rivals = [other for other in others if other is not region and other.shape == region.shape]
    color = _color(region)
    if color is not None:  # "the red rectangle" excludes the rectangles of other colours
        rivals = [other for other in rivals if _color(other) == color]
    return wording(region.shape, color, place=_place(region, rivals) if rivals else "")


def placeholders(text: str) -> tuple[str, ...]:
    """The ids that a text names, in order, with repeats. Raises PhraseError for a malformed one."""
    starts = {match.start() for match in PLACEHOLDER.finditer(text)}
    for attempt in _ATTEMPT.finditer(text):
        if attempt.start() not in starts:
            shown = text[attempt.start() : attempt.start() + 24]
            raise PhraseError(
                f"malformed placeholder at character {attempt.start()}: {shown!r}; "
                "write <region:ID>, for example <region:1>"
            )
    return tuple(match[1] for match in PLACEHOLDER.finditer(text))


def expand(question: str, regions: Sequence[Region]) -> str:
    """Replace every `<region:ID>` in a question by the trained phrase.

    `regions` are all regions drawn on the image, resolved (pixel frame, with id and colour). A
    question without placeholders is returned unchanged. Raises PhraseError for an unknown id (with
    the known ones), for a malformed placeholder, and for regions that words can't distinguish.
    """
    known = _by_id(regions)
    phrases: dict[str, str] = {}
    for name in placeholders(question):
        if name not in known:
            listed = ", ".join(map(repr, known)) or "none"
            raise PhraseError(
                f"<region:{name}> names no region; the given regions have the ids {listed}"
            )
        phrases.setdefault(name, phrase(known[name], regions))

    def replace(match: re.Match[str]) -> str:
        before = question[: match.start()]
        return _head(before) + phrases[match[1]]

    return PLACEHOLDER.sub(replace, question)


def collapse(text: str, regions: Sequence[Region]) -> str:
    """Replace every phrase of a given region by its `<region:ID>`: the inverse of `expand`.

    Also finds the form without article ("within red rectangle"), and the form without colour if
    only one region has the shape. "the object <region:1>" becomes "<region:1>".
    """
    known = _by_id(regions)
    forms: dict[str, str] = {}
    for name, region in known.items():
        alone = sum(other.shape == region.shape for other in regions) == 1
        try:
            full = phrase(region, regions)
        except PhraseError:  # ambiguous: no phrase identifies the region
            continue
        for form in (full, *([wording(region.shape)] if alone else [])):
            forms[form] = name
            forms[form.replace(" the ", " ", 1)] = name
    if not forms:
        return text
    longest_first = sorted(forms, key=len, reverse=True)
    worded = "|".join(re.escape(form) for form in longest_first)
    placed = "|".join(re.escape(f"<region:{name}>") for name in known)
    # "with the mask" must not match inside "with the mask contour".
    pattern = re.compile(
        rf"(?:\b[Tt]he object )?(?:({worded})(?! contour\b)|(?:\b[Tt]he )?({placed}))"
    )
    return pattern.sub(lambda m: m[2] or f"<region:{forms[m[1]]}>", text)


def _by_id(regions: Sequence[Region]) -> dict[str, Region]:
    """Regions by id. A region without an id is named by its position, from 1."""
    known: dict[str, Region] = {}
    for index, region in enumerate(regions, start=1):
        name = region.id if region.id is not None else str(index)
        if name in known:
            raise PhraseError(f"two regions have the id {name!r}; ids must differ")
        known[name] = region
    return known


def _head(before: str) -> str:
    """The words between the text so far and the bare phrase: "", "object ", "the object ", ..."""
    if _GLUED.search(before):
        return ""  # attached to a word: no addition reads well
    if re.search(r"\b[Tt]he $", before):
        return "object "
    if _after_noun(before):
        return ""
    start = re.search(r"(?:^|[.!?]\s+|\n\s*)[\"'(\[]*$", before) is not None
    return "The object " if start else "the object "


def _after_noun(before: str) -> bool:
    """Whether the text so far ends in a noun that the phrase would describe.

    A heuristic: a word right after a determiner counts as a noun, and so do a few common nouns.
    """
    found = _PREFIX.search(before[-80:])
    if found is None:
        return False
    previous, last = (found[1] or "").lower(), found[2].lower()
    if last in _DETERMINERS.split() or last in _NOT_NOUNS.split():
        return False
    return last in _NOUNS.split() or previous in _DETERMINERS.split()


def _place(region: Region, rivals: Sequence[Region]) -> str:
    """Words that distinguish a region from its rivals, along the axis with the larger spread."""
    centres = [_centre(other) for other in rivals]
    mine = _centre(region)
    spread = [
        max(c[axis] for c in [*centres, mine]) - min(c[axis] for c in [*centres, mine])
        for axis in (0, 1)
    ]
    for axis in (0, 1) if spread[0] >= spread[1] else (1, 0):
        order = sorted(c[axis] for c in centres)
        if all(abs(value - mine[axis]) >= 1 for value in order):  # less than a pixel is not visible
            rank = sum(value < mine[axis] for value in order)
            if len(order) == 1:
                return (("left", "right"), ("upper", "lower"))[axis][rank]
            if rank < len(_ORDINALS):
                return f"{_ORDINALS[rank]} ... from the {('left', 'top')[axis]}"
    names = ", ".join(repr(other.id) for other in [region, *rivals])
    raise PhraseError(
        f"the regions {names} have the same shape and no colour or position that distinguishes "
        "them; give each of them a different named colour"
    )


def _centre(region: Region) -> tuple[float, float]:
    """The point that a region is about, in pixels."""
    if region.frame != "pixel":
        raise PhraseError(
            f"{region.label} is in the frame {region.frame!r}; resolve it to pixels first"
        )
    if isinstance(region, Arrow):
        return region.tip
    x1, y1, x2, y2 = region.extent((1, 1))  # the size only matters for the unit frame
    return (x1 + x2) / 2, (y1 + y2) / 2


def _color(region: Region) -> str | None:
    return None if region.color is None else color_name(region.color)
