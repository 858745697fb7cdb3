"""An HTML page of training rows: images, prompts with the learned parts highlighted, regions.

The page is one file without external resources or scripts: images are data URLs, and a content
security policy forbids anything else. Every text is escaped, and control characters that could
reorder or hide text are spelled out. This module does not know where cards come from (`view`).
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from PIL import Image

from vip_llava.regions import Region, rgb

__all__ = ["Card", "PromptPart", "page"]

_SIDE = 512  # pixels of an image's longer side on the page
_QUALITY = 85
_GEOMETRY_LENGTH = 120  # characters

# Control characters, and characters that reorder or hide text.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --learned: #bfe8c4; --ink: #0b3d14; --dim: #777; }
@media (prefers-color-scheme: dark) { :root { --learned: #1f5b2b; --ink: #e4ffe8; --dim: #999; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5em; max-width: 78em; }
h1 { font-size: 1.4em; margin: 0 0 .3em; }
.legend { color: var(--dim); margin: 0 0 1.5em; }
article { border-top: 1px solid var(--line); padding: 1.2em 0; display: grid; gap: 1.5em;
  grid-template-columns: minmax(14em, 2fr) 3fr; }
article > div { min-width: 0; }
h2 { font-size: 1em; margin: 0 0 .6em; overflow-wrap: anywhere; }
h2 small { font-weight: normal; color: var(--dim); }
figure { margin: 0 0 1em; }
figure + figure { display: inline-block; width: 48%; margin-right: 1.5%; vertical-align: top; }
img { max-width: 100%; height: auto; display: block; }
figcaption, .facts { color: var(--dim); font-size: 13px; overflow-wrap: anywhere; }
.text { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-radius: 2px; }
.frame { color: var(--dim); }
.image { color: #fff; background: #36c; padding: 0 .3em; }
mark { background: var(--learned); color: var(--ink); }
.tokens mark, .tokens span { box-shadow: -1px 0 0 var(--line); }
table { border-collapse: collapse; font-size: 13px; margin-top: 1em; width: 100%; }
th, td { text-align: left; padding: .15em .7em .15em 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
td:last-child { white-space: normal; overflow-wrap: anywhere; }
i.swatch { display: inline-block; width: .8em; height: .8em; border: 1px solid var(--line); }
.problem { border-left: 4px solid #c33; padding-left: .8em; }
@media (max-width: 48em) { article { grid-template-columns: 1fr; } }
"""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of a prompt, or one of its tokens.

    kind: "frame" comes from the template, "text" from the row, "image" is a placeholder of images.
    learned: training computes the loss on it.
    """

    text: str
    learned: bool = False
    kind: Literal["frame", "text", "image"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One row as a training sample, or the reason why it is bad.

    where: file and row. images: a caption and a drawn RGB image each. tokens: whether every part is
    one token. facts: short remarks, such as the number of tokens.
    """

    where: str
    id: str
    kind: str = ""
    images: tuple[tuple[str, Image.Image], ...] = ()
    parts: tuple[PromptPart, ...] = ()
    tokens: bool = False
    regions: tuple[Region, ...] = ()
    facts: tuple[str, ...] = ()
    problem: str | None = field(default=None)


def page(title: str, remarks: Sequence[str], cards: Iterable[Card]) -> Iterator[str]:
    """The page as chunks of text, one card at a time, so that few images are in memory."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_shown(title)}</title>\n<style>{_STYLE}</style></head><body>\n"
        f'<h1>{_shown(title)}</h1>\n<p class="legend">{" · ".join(map(_shown, remarks))}'
        " · <mark>what training learns</mark>"
        ' · <span class="frame">what the template adds</span></p>\n'
    )
    for card in cards:
        yield _card(card)
    yield "</body></html>\n"


def _shown(text: str) -> str:
    """Escaped text with hidden characters spelled out."""
    return escape(_HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _card(card: Card) -> str:
    head = f"<h2>{_shown(card.id or '(no id)')} <small>{_shown(card.kind)} · {_shown(card.where)}</small></h2>"
    if card.problem is not None:
        body = f'<div class="problem">bad row: {_shown(card.problem)}</div>'
        return f"<article><div>{_figures(card)}</div><div>{head}{body}</div></article>\n"
    facts = f'<p class="facts">{" · ".join(map(_shown, card.facts))}</p>' if card.facts else ""
    kind = "text tokens" if card.tokens else "text"
    text = "".join(map(_part, card.parts))
    return (
        f"<article><div>{_figures(card)}</div>"
        f'<div>{head}<div class="{kind}" dir="auto">{text}</div>{facts}{_table(card.regions)}</div>'
        "</article>\n"
    )


def _part(part: PromptPart) -> str:
    text = _shown(part.text)
    if part.kind == "image":
        return f'<span class="image">{text}</span>'
    if part.learned:
        return f"<mark>{text}</mark>"
    return f'<span class="frame">{text}</span>' if part.kind == "frame" else f"<span>{text}</span>"


def _figures(card: Card) -> str:
    return "".join(
        f'<figure><img src="data:image/jpeg;base64,{_jpeg(image)}" alt="{_shown(words)}">'
        f"<figcaption>{_shown(words)}</figcaption></figure>"
        for words, image in card.images
    ) or ('<p class="facts">no image</p>' if card.problem is None else "")


def _jpeg(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _table(regions: Sequence[Region]) -> str:
    if not regions:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("id", "shape", "colour", "style", "geometry"))
    return f"<table><tr>{head}</tr>{''.join(map(_region, regions))}</table>"


def _region(region: Region) -> str:
    facts = region.to_json()
    style = [f"{name} {facts[name]}" for name in ("alpha", "width") if name in facts]
    hidden = ("id", "shape", "frame", "color", "alpha", "width")
    parts = [f"{key} {_rounded(value)}" for key, value in facts.items() if key not in hidden]
    geometry = ", ".join(parts)
    if len(geometry) > _GEOMETRY_LENGTH:
        geometry = geometry[: _GEOMETRY_LENGTH - 3] + "..."
    color = region.color
    swatch = ""
    if color is not None:
        red, green, blue = rgb(color)
        swatch = (
            f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i> '
            f"{_shown(str(facts.get('color', '')))}"
        )
    cells = (_shown(region.id or ""), _shown(region.shape), swatch, _shown(", ".join(style)))
    row = "".join(f"<td>{cell}</td>" for cell in (*cells, _shown(geometry)))
    return f"<tr>{row}</tr>"


def _rounded(value: object) -> object:
    """Geometry rounded to a tenth of a pixel."""
    if isinstance(value, float):
        return round(value, 1)
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
