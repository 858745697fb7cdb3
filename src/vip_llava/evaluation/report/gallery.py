"""Right and wrong answers with the images that the model saw, for each group of a run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path, PurePosixPath

from vip_llava.evaluation.results import ResultRow

__all__ = ["gallery"]

_MAX_BYTES = 200_000  # of an image; those that a run writes are far smaller


def gallery(run: Path, name: str, rows: Sequence[ResultRow]) -> list[str]:
    """The stored images of a run with their answers, wrong answers first."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        shown = [row for row in rows if row.group == group and row.shown]
        ordered = sorted(shown, key=lambda row: row.right is True)
        cards = "".join(_card(run, row) for row in ordered)
        if cards:
            heading = escape(f"Answers of {name}" + (f": {group}" if group else ""))
            parts.append(f'<h3>{heading}</h3><div class="cards">{cards}</div>')
    return parts


def _card(run: Path, row: ResultRow) -> str:
    data = _image_data(run, row.shown)
    if data is None:
        return ""
    kind = "" if row.right is None else "right" if row.right else "wrong"
    expected = (
        row.expected if isinstance(row.expected, str) else " / ".join(map(str, row.expected or ()))
    )
    if row.right is None:
        graded = "" if row.score is None else f" ({100 * row.score:.0f} of 100)"
        verdict = f"expected <b>{escape(expected)}</b>{graded}"
    else:
        verdict = "right" if row.right else f"should be <b>{escape(expected)}</b>"
    return (
        f'<figure class="{kind}"><img src="data:image/jpeg;base64,{data}" alt="{escape(row.id)}">'
        f'<figcaption><div class="question">{escape(row.question)}</div>'
        f"<div>answered <b>{escape(row.answer)}</b>, {verdict}</div>"
        f'<div class="id">{escape(row.id)}</div></figcaption></figure>'
    )


def _image_data(run: Path, name: str) -> str | None:
    """A JPEG of the run directory in base64; None for any other path that a row may name."""
    parts = PurePosixPath(name).parts
    if len(parts) != 2 or parts[0] != "images" or parts[1] == "..":
        return None
    try:
        content = (run / name).read_bytes()
    except OSError:
        return None
    if len(content) > _MAX_BYTES or not content.startswith(b"\xff\xd8"):
        return None
    return base64.b64encode(content).decode("ascii")
