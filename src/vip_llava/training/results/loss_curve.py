"""The loss curve of a run as a PNG, drawn with Pillow from its metrics.

The thin line is the loss of each report, the thick line its moving average. It knows only numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vip_llava.errors import DataError
from vip_llava.training.metrics import read_metrics

__all__ = ["draw_loss_curve", "write_loss_curve"]

_SIZE = (800, 450)
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 24, 48
_INK, _GRID, _THIN, _THICK = (40, 40, 40), (225, 225, 225), (160, 190, 225), (20, 80, 160)


def write_loss_curve(metrics: Path, image: Path, title: str = "loss") -> Path:
    """Draw the losses of a metrics file into a PNG. Raises DataError for fewer than two losses."""
    points = [(m["step"], float(m["loss"])) for m in read_metrics(metrics) if "loss" in m]
    points = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if len(points) < 2:
        raise DataError(f"{metrics} has {len(points)} losses; a curve needs two")
    draw_loss_curve(points, title).save(image, optimize=True)
    return image


def draw_loss_curve(points: Sequence[tuple[float, float]], title: str) -> Image.Image:
    """The curve of at least two (step, loss) pairs in the order of steps."""
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    steps, losses = zip(*points, strict=True)
    low, high, ticks = _axis(min(0.0, min(losses)), max(losses))
    first, last = min(steps), max(steps)
    width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM

    def at(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + width * (step - first) / max(last - first, 1e-9)
        return x, _TOP + height * (high - loss) / (high - low)

    for tick in ticks:
        y = at(first, tick)[1]
        draw.line([(_LEFT, y), (_LEFT + width, y)], fill=_GRID)
        draw.text((_LEFT - 8, y), f"{tick:g}", fill=_INK, anchor="rm")
    for share in range(5):
        step = first + (last - first) * share / 4
        x = at(step, low)[0]
        draw.text((x, _TOP + height + 8), f"{step:.0f}", fill=_INK, anchor="mt")
    draw.text((_LEFT + width / 2, _SIZE[1] - 16), "step", fill=_INK, anchor="mm")
    draw.text((_LEFT, _TOP / 2), title, fill=_INK, anchor="lm")
    draw.line([at(*point) for point in points], fill=_THIN, width=1)
    smooth = list(zip(steps, _averaged(losses), strict=True))
    draw.line([at(*point) for point in smooth], fill=_THICK, width=3, joint="curve")
    draw.line(
        [(_LEFT, _TOP), (_LEFT, _TOP + height), (_LEFT + width, _TOP + height)], fill=_INK, width=1
    )
    return image


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Both ends of the axis and about five ticks, all round numbers."""
    span = max(high - low, 1e-9)
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw)
    start, end = math.floor(low / step), math.ceil(high / step)
    ticks = [round(step * k, 12) for k in range(start, end + 1)]
    return ticks[0], ticks[-1], ticks


def _averaged(values: Sequence[float]) -> list[float]:
    """Moving average over a window of a tenth of all values."""
    radius = max(len(values) // 20, 1)
    windows = [values[max(i - radius, 0) : i + radius + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
