"""Bar charts as HTML, without scripts or libraries.

A chart has several series (models) over the same categories (shapes, capabilities). It does not
know what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vip_llava.evaluation.intervals import Interval

__all__ = ["COLORS", "bar_chart"]

#: Colours of the series, distinguishable with colour blindness (after Okabe and Ito).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555")


def bar_chart(
    title: str, categories: Sequence[str], series: Sequence[tuple[str, Sequence[Interval]]]
) -> str:
    """A group of bars for each category, with error bars. Values are 0..1, None if not measured.

    The longest bar or error bar takes the whole width.
    """
    ends = [high or value or 0.0 for _, row in series for value, _, high in row]
    scale = 100 / max(*ends, 1e-9)
    lines = []
    for place, category in enumerate(categories):
        bars = (
            _bar(name, row[place], scale, COLORS[number % len(COLORS)])
            for number, (name, row) in enumerate(series)
        )
        lines.append(f"<tr><th>{escape(category)}</th><td>{''.join(bars)}</td></tr>")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<table class="bars">{"".join(lines)}</table></figure>'
    )


def _bar(name: str, interval: Interval, scale: float, color: str) -> str:
    value, low, high = interval
    if value is None:
        return '<div class="bar">not measured</div>'
    text = f"{100 * value:.1f}"
    whisker = ""
    if low is not None and high is not None:
        left, width = scale * low, scale * (high - low)
        whisker = f'<i style="left:{left:.2f}%;width:{width:.2f}%"></i>'
    return (
        f'<div class="bar" title="{escape(name)}: {text}">'
        f'<b style="width:{scale * value:.2f}%;background:{color}"></b>{whisker}'
        f"<span>{text}</span></div>"
    )
