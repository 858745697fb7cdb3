"""Bar and radar charts as SVG text for a light page, without scripts or libraries.

A chart has several series (models) over the same categories (shapes, capabilities). It does not
know what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLORS", "Bar", "bars", "radar"]

#: Colours of the series, distinguishable with colour blindness (after Okabe and Ito).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555")
_GRID = "#ddd"


@dataclass(frozen=True, slots=True)
class Bar:
    """One value 0..1 with its interval; None if it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


def bars(categories: Sequence[str], series: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Horizontal bars with error bars, a group for each category. Values are 0..1."""
    left, width, thick, gap = 190, 460, 14, 10
    block = thick * len(series) + gap
    height = block * len(categories) + 34
    parts = [_open(left + width + 60, height, "bar chart")]
    top = _axis_end(max((_top(bar) for _, row in series for bar in row), default=1.0))
    for step in range(5):
        x = left + width * step / 4
        parts.append(
            f'<line x1="{x:.1f}" y1="8" x2="{x:.1f}" y2="{height - 22}" stroke="{_GRID}"/>'
        )
        parts.append(_text(x, height - 6, f"{100 * top * step / 4:g}", "middle"))
    for place, category in enumerate(categories):
        y = 12 + block * place
        parts.append(_text(left - 8, y + block / 2 - gap / 2 + 1, category, "end"))
        for number, (name, row) in enumerate(series):
            parts += _bar(row[place], name, left, y + thick * number, width / top, thick, number)
    return "".join([*parts, "</svg>"])


def _bar(
    bar: Bar, name: str, left: float, y: float, scale: float, thick: int, number: int
) -> list[str]:
    if bar.value is None:
        return [_text(left + 4, y + thick - 3, "not measured", "start")]
    color, end, middle = COLORS[number % len(COLORS)], left + bar.value * scale, y + thick / 2
    parts = [
        f'<rect x="{left}" y="{y + 1:.1f}" width="{bar.value * scale:.1f}" height="{thick - 2}" '
        f'fill="{color}"><title>{escape(name)}: {100 * bar.value:.1f}</title></rect>'
    ]
    label = end
    if bar.low is not None and bar.high is not None:
        low, label = left + bar.low * scale, left + bar.high * scale
        parts.append(
            f'<path d="M{low:.1f} {middle:.1f}H{label:.1f}M{low:.1f} {middle - 3:.1f}v6'
            f'M{label:.1f} {middle - 3:.1f}v6" stroke="#222" fill="none"/>'
        )
    return [*parts, _text(max(label, end) + 5, y + thick - 3, f"{100 * bar.value:.1f}", "start")]


def radar(categories: Sequence[str], series: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """A polygon for each series over three or more categories, scaled to the largest value."""
    size, radius = 420, 140
    center = size / 2
    top = _axis_end(max((bar.value or 0.0 for _, row in series for bar in row), default=1.0))
    turn = [2 * math.pi * i / len(categories) - math.pi / 2 for i in range(len(categories))]

    def points(lengths: Sequence[float]) -> str:
        return " ".join(
            f"{center + radius * length * math.cos(angle):.1f},"
            f"{center + radius * length * math.sin(angle):.1f}"
            for length, angle in zip(lengths, turn, strict=True)
        )

    parts = [_open(size, size, "radar chart")]
    for ring in (0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<polygon points="{points([ring] * len(turn))}" fill="none" stroke="{_GRID}"/>'
        )
        parts.append(_text(center - 4, center - radius * ring + 4, f"{100 * top * ring:g}", "end"))
    for category, angle in zip(categories, turn, strict=True):
        x, y = center + (radius + 16) * math.cos(angle), center + (radius + 16) * math.sin(angle)
        anchor = "middle" if abs(math.cos(angle)) < 0.2 else "start" if x > center else "end"
        parts.append(_text(x, y + 4, category, anchor))
    for number, (name, row) in enumerate(series):
        color = COLORS[number % len(COLORS)]
        shape = points([(bar.value or 0.0) / top for bar in row])
        parts.append(
            f'<polygon points="{shape}" fill="{color}" fill-opacity=".15" stroke="{color}" '
            f'stroke-width="2"><title>{escape(name)}</title></polygon>'
        )
    return "".join([*parts, "</svg>"])


def _open(width: float, height: float, what: str) -> str:
    return (
        f'<svg role="img" aria-label="{what}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-size="12" font-family="system-ui, sans-serif">'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'


def _top(bar: Bar) -> float:
    return max(bar.high or 0.0, bar.value or 0.0)


def _axis_end(value: float) -> float:
    """The end of the axis: the next larger of 0.1, 0.2, 0.4, 1, 2, 4, 10."""
    return next((end for end in (0.1, 0.2, 0.4, 1.0, 2.0, 4.0) if value <= end), 10.0)
