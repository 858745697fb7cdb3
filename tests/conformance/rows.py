"""Recorded training texts in a form that can be compared: marks' words as {VP}, sentences apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vip_llava.data.records import parse_row
from vip_llava.data.tasks import ArrangedRow, arrange
from vip_llava.regions.colors import PALETTE
from vip_llava.regions.sampling import generator

Record = dict[str, Any]

_SHAPES = "rectangle|ellipse|triangle|point|scribble|mask contour|mask|arrow"
_WORDS = re.compile(
    rf"\b(?:within|with|at|pointed to by) (the )?(?:({'|'.join(PALETTE)}) )?(?:{_SHAPES})\b"
)
_ITEM = re.compile(rf"(?:the )?(?:(?:{'|'.join(PALETTE)}) )?(?:{_SHAPES})")
_OPTIONS = re.compile(
    r"(?P<before>.*[.?;!y]) (?P<offer>[A-Z][^:?]*:) (?P<options>\(A\) .*)", re.DOTALL
)
_ANSWERS = (
    r"\([A-D]\)",
    r"The [a-z ]+ answer is \([A-D]\)",
    r"The [a-z ]+ answer is \([A-D]\) - (?=[a-z{])",
    r"\([A-D]\) - The [a-z ]+ because ",
    r"\([A-D]\)[^A-Za-z ]* ",
    r"Answer \([A-D]\): ",
    r"Opt for \([A-D]\) if ",
)


def texts_of(arranged: ArrangedRow, images: int = 1) -> list[str]:
    """The texts as training files have them: `<image>` lines begin the first user turn."""
    texts = [turn.text or "" for turn in arranged.turns]
    first = [turn.role for turn in arranged.turns].index("user")
    texts[first] = "<image>\n" * images + texts[first]
    return texts


def normal(text: object) -> str:
    """A text with the words of each mark as "{VP}", "{VP+the}", "{VP+the+colour}", ..."""
    return _WORDS.sub(
        lambda found: f"{{VP{'+the' if found[1] else ''}{'+colour' if found[2] else ''}}}",
        str(text),
    )


def unmarked(text: str) -> str:
    """A normal text without any of its marks' words."""
    return re.sub(r" ?\{VP[^}]*\}", "", text)


def hints(text: str) -> str:
    """A question of flickr30k with each listed mark as "MARK" and the articles that it lacks."""
    before, found, listed = text.partition("visual prompts are: ")
    return before + found + _ITEM.sub("MARK", listed)


def anonymous(text: str) -> str:
    """A normal text of VCR in which things have no noun and marks are all alike."""
    text = re.sub(r"\{VP[^}]*\}", "{VP}", normal(text))
    return re.sub(r"\b([Tt]he) \w+ (?=\{VP\})", r"\1 THING ", text)


def pieces(turns: Sequence[str]) -> set[tuple[str, str]]:
    """What the four turns of a VCR conversation are put together of, each with its role."""
    found: set[tuple[str, str]] = set()
    for place, name in ((0, "question"), (2, "why")):
        text = anonymous(turns[place])
        if options := _OPTIONS.fullmatch(text):
            found |= {("offer", options["offer"]), (f"{name} options", options["options"])}
            text = options["before"]
        if place == 0:
            introduction, _, text = text.partition(": ")
            found.add(("introduction", introduction))
        found.add((name, text))
        answer = anonymous(turns[place + 1])
        if options is None:
            found.add((f"{name} answer", answer))
            continue
        form = next(
            form
            for form in _ANSWERS
            if re.match(f"{form}$", answer) or re.match(f"{form}(?=[a-z{{I])", answer)
        )
        opening = re.match(form, answer)
        assert opening
        form = re.sub(r"\([A-D]\)", "(X)", opening[0])
        if best := re.search(r"The ([a-z ]+) (?:answer is|because)", form):
            found.add(("best", best[1]))
            form = form.replace(best[1], "BEST")
        found.add(("form", form))
        found.add((f"{name} told", answer[opening.end() :]))
    return found


def arranged(case: Record, size: tuple[int, int], count: int, folder: Path) -> list[ArrangedRow]:
    """What we make of a recorded row under `count` generators, with its settings."""
    if "meta_file" in case:
        name = Path(case["source"]["meta_dir"]).name
        (folder / name).write_text(json.dumps(case["meta_file"]), "utf-8")
    row = parse_row(case["source"])
    return [
        arrange(
            row, size, generator("conformance", case["id"], number), images=folder,
            alpha=case["data_args"].get("alpha"), style=case["data_args"].get("visual_prompt_style"),
        )
        for number in range(count)
    ]  # fmt: skip


Arranger = Callable[[Record, int], list[ArrangedRow]]
