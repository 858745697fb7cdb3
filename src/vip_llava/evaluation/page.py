"""A page for people: drawn pictures with question, answer and label, in one HTML file.

Everything is inside the file (pictures as data addresses, no script, nothing fetched), so it can be
mailed or put beside a score. It deliberately does not know models or how answers are judged.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

_SIDE = 320  # pixels of a thumbnail's longer side
_QUALITY = 80

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; margin-bottom: 2em; }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 20em; border: 1px solid #ddd; border-top: 4px solid #b33; padding: .6em; }
figure.right { border-top-color: #2a7; }
img { max-width: 100%; display: block; margin-bottom: .5em; }
figcaption { overflow-wrap: anywhere; }
.id { color: #777; font-size: 12px; }
.question { white-space: pre-wrap; }
"""


@dataclass(frozen=True, slots=True)
class Card:
    """One question as it was seen: `picture` is the drawn RGB picture."""

    id: str
    picture: Image.Image
    question: str
    expected: str
    answer: str
    right: bool


def thumbnail(picture: Image.Image) -> Image.Image:
    """A copy that is at most 320 pixels long, so that many cards can be kept."""
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return small


def page(
    title: str, scores: Sequence[Mapping[str, Any]], cards: Mapping[str, Iterable[Card]]
) -> str:
    """The page's text: a table of the scores (all with the same keys) and the cards by variant."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        _table(scores),
    ]
    for variant, several in cards.items():
        parts.append(f'<h2>{escape(variant)}</h2><div class="cards">')
        parts += [_figure(card) for card in several]
        parts.append("</div>")
    return "\n".join([*parts, "</body></html>", ""])


def write_page(
    path: Path,
    title: str,
    scores: Sequence[Mapping[str, Any]],
    cards: Mapping[str, Iterable[Card]],
) -> None:
    """Write `page(...)` as UTF-8."""
    path.write_text(page(title, scores, cards), encoding="utf-8")


def _table(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in scores[0])
    rows = [
        "".join(f"<td>{escape('' if v is None else str(v))}</td>" for v in row.values())
        for row in scores
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(card: Card) -> str:
    held = io.BytesIO()
    thumbnail(card.picture).save(held, format="JPEG", quality=_QUALITY)
    data = base64.b64encode(held.getvalue()).decode("ascii")
    return (
        f'<figure class="{"right" if card.right else "wrong"}">'
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(card.id)}">'
        f'<figcaption><div class="question">{escape(card.question)}</div>'
        f"<div>said <b>{escape(card.answer)}</b>, "
        f"{'right' if card.right else f'should be <b>{escape(card.expected)}</b>'}</div>"
        f'<div class="id">{escape(card.id)}</div></figcaption></figure>'
    )
