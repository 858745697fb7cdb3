"""Right and wrong answers with the images as the model saw them, of each group of a run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path, PurePosixPath

from vip_llava.evaluation.items import Row

__all__ = ["gallery"]

_LARGEST = 200_000  # bytes of one image; a run writes far smaller ones


def gallery(folder: Path, name: str, rows: Sequence[Row]) -> list[str]:
    """The kept images of a run, wrong answers first: that is where there is something to learn."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        shown = [row for row in rows if row.group == group and row.shown]
        cards = [
            card
            for row in sorted(shown, key=lambda row: row.right is True)
            if (card := _card(folder, row))
        ]
        if cards:
            heading = f"Answers of {name}" + (f": {group}" if group else "")
            parts.append(f'<h3>{escape(heading)}</h3><div class="cards">{"".join(cards)}</div>')
    return parts


def _card(folder: Path, row: Row) -> str:
    data = _image(folder, row.shown)
    if data is None:
        return ""
    kind = "" if row.right is None else "right" if row.right else "wrong"
    expected = (
        row.expected if isinstance(row.expected, str) else " / ".join(map(str, row.expected or ()))
    )
    if row.right is None:
        graded = "" if row.score is None else f" ({100 * row.score:.0f} of 100)"
        verdict = f"wanted <b>{escape(expected)}</b>{graded}"
    else:
        verdict = "right" if row.right else f"should be <b>{escape(expected)}</b>"
    return (
        f'<figure class="{kind}"><img src="data:image/jpeg;base64,{data}" alt="{escape(row.id)}">'
        f'<figcaption><div class="question">{escape(row.question)}</div>'
        f"<div>said <b>{escape(row.answer)}</b>, {verdict}</div>"
        f'<div class="id">{escape(row.id)}</div></figcaption></figure>'
    )


def _image(folder: Path, name: str) -> str | None:
    """A JPEG of the run's own folder as text; None for anything else that a row may name."""
    parts = PurePosixPath(name).parts
    if len(parts) != 2 or parts[0] != "images" or parts[1] == "..":
        return None
    try:
        content = (folder / name).read_bytes()
    except OSError:
        return None
    if len(content) > _LARGEST or not content.startswith(b"\xff\xd8"):
        return None
    return base64.b64encode(content).decode("ascii")
