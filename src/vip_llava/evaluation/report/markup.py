"""The style of the page, and tables. All text in a table is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["STYLE", "table"]

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
  color: #222; background: #fff; }
h2 { border-top: 2px solid #222; padding-top: .6em; margin-top: 2em; }
table { border-collapse: collapse; margin: .6em 0 1.2em; display: block; overflow-x: auto; }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
table.facts td { text-align: left; overflow-wrap: anywhere; }
.note { color: #555; font-size: 13px; margin: .1em 0; }
.failed { color: #a11; margin-bottom: 0; }
.key { list-style: none; padding: 0; }
.key span { display: inline-block; width: 1em; height: 1em; margin-right: .4em; vertical-align: -2px; }
figure { margin: 0; }
figure.chart { margin: 1em 0; }
figure.chart figcaption { font-weight: 600; }
table.bars { display: table; width: 100%; }
table.bars th { width: 12em; font-weight: normal; }
table.bars td { text-align: left; padding-right: 4em; }
.bar { position: relative; height: 1.2em; }
.bar b { position: absolute; left: 0; top: 2px; bottom: 2px; }
.bar i { position: absolute; top: 50%; border-top: 1px solid #222; }
.bar span { position: absolute; left: 100%; padding-left: .5em; font-size: 12px; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; }
.cards figure { width: 20em; border: 1px solid #ddd; border-top: 4px solid #888; padding: .6em; }
.cards figure.right { border-top-color: #2a7; }
.cards figure.wrong { border-top-color: #b33; }
.cards img { max-width: 100%; display: block; margin-bottom: .5em; }
.cards figcaption { overflow-wrap: anywhere; }
.id { color: #777; font-size: 12px; }
.question { white-space: pre-wrap; }
"""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; without a head, its lines are names and values."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>" for line in lines
    )
    if not head:
        return f'<table class="facts">{body}</table>'
    return f"<table><tr>{top}</tr>{body}</table>"
