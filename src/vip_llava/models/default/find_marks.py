"""Finds marks that were drawn on an image before, for focal views of the default model.

People draw on images themselves and ask about "the red rectangle". The text names a shape and one
of the nine colors. Pixels near that color are joined into connected components, first of opaque
ink, then of translucent ink and of ink blurred by JPEG; the component that fits the shape best is
the mark. A component that only has the color is not a mark.

This module does not know models, or what the regions are used for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vip_llava.regions.colors import PALETTE
from vip_llava.regions.shapes import SHAPES, Arrow, Box, Ellipse, Point, Region

__all__ = ["NamedMark", "find_mark", "find_marks", "named_marks"]

_SIDE = 640
"""Longer side of the image in the search, in pixels; thin lines of larger images survive."""
_OPACITIES = (0.94, 0.8, 0.62)
"""Least share of ink in a pixel, from strict to tolerant."""
_STRICT = {"triangle", "scribble", "contour", "arrow"}
"""Shapes that photos often contain; the last opacity is too tolerant for them."""
_GAPS = (3, 9)
"""Filter sizes that join parts of a line; the second joins a line that another mark crosses."""
_MIN_PIXELS = 24  # fewer are noise
_MAX_COMPONENTS = 12

_Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NamedMark:
    """A mark that a text mentions, with its words ("red rectangle")."""

    shape: str
    color: str
    words: str


# The nouns of training, and synonyms.
_NOUNS = {kind.words[1]: shape for shape, kind in SHAPES.items()}
_NOUNS |= {"box": "box", "circle": "ellipse", "dot": "point"}
_NAMED = re.compile(
    rf"\b({'|'.join(PALETTE)})\s+({'|'.join(sorted(_NOUNS, key=len, reverse=True))})\b",
    re.IGNORECASE,
)


def named_marks(text: str) -> tuple[NamedMark, ...]:
    """The marks that a text names by color and shape, each once, in the text's order."""
    found: dict[tuple[str, str], NamedMark] = {}
    for match in _NAMED.finditer(text):
        color, noun = match[1].lower(), match[2].lower()
        shape = _NOUNS[noun]
        found.setdefault((shape, color), NamedMark(shape, color, f"{color} {noun}"))
    return tuple(found.values())


def find_marks(image: Image.Image, texts: Sequence[str]) -> tuple[tuple[str, Region], ...]:
    """The marks that `texts` name and that are on an RGB image, as (words, Region) pairs.

    The words are those of the text ("red rectangle"). Regions are in pixels and have the ids "1",
    "2", ...; marks that are not found are left out.
    """
    found: list[tuple[str, Region]] = []
    for mark in named_marks("\n".join(texts)):
        region = find_mark(image, mark.shape, mark.color)
        if region is not None:
            found.append((mark.words, region.changed(id=str(len(found) + 1))))
    return tuple(found)


def find_mark(image: Image.Image, shape: str, color: str) -> Region | None:
    """A mark of that shape and named color on an RGB image; None if there is none.

    The result is in pixels: an Ellipse, Point or Arrow for those shapes, and the Box around any
    other. Its color is `color`. Filled masks are never found, because photos contain many filled
    areas.

    Raises:
        KeyError: an unknown color.
    """
    if shape not in _FITS:
        return None
    fits = _FITS[shape]
    scale = min(_SIDE / max(image.size), 1.0)
    ink = np.array(PALETTE[color], np.float32)
    pixels = np.asarray(image, np.float32)
    opacity = _opacity(pixels, ink)
    for threshold in _OPACITIES[:2] if shape in _STRICT else _OPACITIES:
        mask = _shrink(opacity >= threshold, scale)
        for gap in _GAPS:
            found = [each for each in map(fits, _components(mask, gap)) if each is not None]
            if found:
                best = max(found, key=lambda each: each[0])[1]
                size = (mask.shape[1], mask.shape[0])
                in_image = best.to_frame("unit", size).to_frame("pixel", image.size)
                return in_image.changed(color=color)
    return None


def _opacity(pixels: NDArray[np.float32], ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest opacity of ink, 0 to 1, that explains each pixel [H, W].

    A pixel is c = a * ink + (1 - a) * photo. The photo's value is in 0..255, which bounds a in
    each channel.
    """
    # A black photo bounds a by c / ink, a white one by (255 - c) / (255 - ink).
    low = np.where(ink > 0, pixels / np.maximum(ink, 1), 1.0)
    high = np.where(ink < 255, (255 - pixels) / np.maximum(255 - ink, 1), 1.0)
    bound: NDArray[np.float32] = np.minimum(low, high).min(axis=2).astype(np.float32)
    return bound


def _shrink(mask: _Mask, scale: float) -> _Mask:
    """The mask at a smaller scale; a cell is set if a pixel near it is, so thin lines survive."""
    image = Image.fromarray(mask.astype(np.uint8) * 255, "L")
    if scale < 1:
        step = int(1 / scale)
        if step > 1:
            image = image.filter(ImageFilter.MaxFilter(step | 1))
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.NEAREST)
    return np.asarray(image) > 0


@dataclass(frozen=True, slots=True)
class _Component:
    """A connected component of ink.

    Args:
        x1, y1, x2, y2: its bounding box; x2 and y2 are exclusive.
        ink: its pixels in the box.
        image_side: longer side of the image.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    ink: _Mask
    image_side: int

    @property
    def pixels(self) -> int:
        return int(self.ink.sum())

    def thin(self) -> bool:
        """Whether it is a line: hardly any of its pixels is surrounded by ink."""
        reach = max(self.image_side // 40, 3)
        total = np.pad(self.ink, reach + 1).cumsum(0).cumsum(1)
        side = 2 * reach + 1
        around = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
        around = around + total[:-side, :-side]
        return float((around > 0.97 * side * side).sum()) < 0.02 * self.pixels

    @property
    def box(self) -> tuple[float, float, float, float]:
        return float(self.x1), float(self.y1), float(self.x2), float(self.y2)


def _components(mask: _Mask, gap: int) -> list[_Component]:
    """The largest connected components; a filter of `gap` pixels (odd) joins nearby ones."""
    wide = np.asarray(
        Image.fromarray(mask.astype(np.uint8) * 255, "L").filter(ImageFilter.MaxFilter(gap))
    )
    labels = _labels(wide > 0)
    if labels is None:
        return []
    inside = np.where(mask, labels, 0)
    counts = np.bincount(inside.ravel())
    counts[0] = 0
    components = []
    for label in counts.argsort()[::-1][:_MAX_COMPONENTS].tolist():
        if counts[label] < _MIN_PIXELS:
            break
        ys, xs = np.nonzero(inside == label)
        x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        components.append(
            _Component(x1, y1, x2, y2, inside[y1:y2, x1:x2] == label, max(mask.shape))
        )
    return components


def _labels(mask: _Mask) -> NDArray[np.int64] | None:
    """Labels from 1 of the 8-connected components, 0 elsewhere; None for an empty mask.

    Rows are split into runs, and touching runs of adjacent rows are united (union-find).
    """
    padded = np.pad(mask, 1).astype(np.int8)
    change = np.diff(padded[1:-1], axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    if not len(rows):
        return None
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    firsts = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()
    start, end = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, here = firsts[row - 1], firsts[row]
        while above < firsts[row] and here < firsts[row + 1]:
            if start[above] <= end[here] and start[here] <= end[above]:
                parent[root(here)] = root(above)
            if end[above] < end[here]:
                above += 1
            else:
                here += 1
    labels = np.zeros(mask.shape, np.int64)
    for run, row in enumerate(rows.tolist()):
        labels[row, start[run] : end[run]] = root(run) + 1
    return labels


# Score of a component as a shape, and its Region; None if it does not fit.
_Fit = tuple[float, Region] | None


def _fit_box(component: _Component) -> _Fit:
    """A box: ink along all four sides of the bounding box."""
    height, width = component.ink.shape
    if min(height, width) < 5:
        return None
    band = max(2, round(0.06 * min(height, width)))
    sides = (
        component.ink[:band].any(0).mean(),
        component.ink[-band:].any(0).mean(),
        component.ink[:, :band].any(1).mean(),
        component.ink[:, -band:].any(1).mean(),
    )
    if min(sides) < 0.55 or sum(sides) < 3.2:
        return None
    # A filled area has ink along its sides too; an outline leaves the middle free.
    free = (
        1 - component.ink[band * 2 : -band * 2, band * 2 : -band * 2].mean()
        if min(height, width) > 4 * band + 2
        else 0.5
    )
    if free < 0.35:
        return None
    return sum(sides) / 4 * free * (height + width), Box(*component.box)


def _fit_ellipse(component: _Component) -> _Fit:
    """An ellipse: ink all around the ellipse in the bounding box, and little elsewhere."""
    height, width = component.ink.shape
    if min(height, width) < 6:
        return None
    ys, xs = np.nonzero(component.ink)
    u, v = (xs + 0.5) / width * 2 - 1, (ys + 0.5) / height * 2 - 1
    radius = np.hypot(u, v)
    near = (radius > 0.72) & (radius < 1.16)
    if near.mean() < 0.7:
        return None
    angles = ((np.arctan2(v[near], u[near]) + np.pi) / (2 * np.pi) * 36).astype(int) % 36
    around = len(np.unique(angles)) / 36
    if around < 0.7:
        return None
    return around * float(near.mean()) * (height + width), Ellipse(*component.box)


def _fit_line(component: _Component) -> _Fit:
    """A scribble or contour: a line, the longer the better."""
    if max(component.ink.shape) < 8 or not component.thin():
        return None
    return float(component.pixels), Box(*component.box)


def _fit_triangle(component: _Component) -> _Fit:
    """A triangle: a line along the sides of the largest triangle between its pixels."""
    if _fit_line(component) is None:
        return None
    ys, xs = np.nonzero(component.ink)
    points = np.stack([xs, ys], 1).astype(float)
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    hull = points[np.unique((points @ np.stack([np.cos(turns), np.sin(turns)])).argmax(0))]
    if len(hull) < 3:
        return None
    one, two, three = np.array(list(combinations(range(len(hull)), 3))).T
    edge, other = hull[two] - hull[one], hull[three] - hull[one]
    areas = np.abs(edge[:, 0] * other[:, 1] - edge[:, 1] * other[:, 0])
    best = areas.argmax()
    ends = hull[[one[best], two[best], three[best], one[best]]]
    reach = max(3.0, 0.08 * max(component.ink.shape))
    sides = list(pairwise(ends))
    near = np.min([_distances(points, a, b) for a, b in sides], axis=0) <= reach
    if near.mean() < 0.85 or min(_covered(points, a, b, reach) for a, b in sides) < 0.85:
        return None
    return float(near.sum()), Box(*component.box)


def _covered(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64], reach: float
) -> float:
    """The share of the segment between two points that has one of the points [N, 2] near it."""
    along = end - start
    length = float(np.hypot(*along))
    close = points[_distances(points, start, end) <= reach]
    steps = max(int(length / 2), 1)
    places = ((close - start) @ along / max(length, 1e-9) ** 2 * steps).astype(int)
    return len(np.unique(places.clip(0, steps - 1))) / steps


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distances of points [N, 2] to the segment between two points."""
    along = end - start
    share = ((points - start) @ along / max(float(along @ along), 1e-9)).clip(0, 1)
    apart: NDArray[np.float64] = np.linalg.norm(points - start - share[:, None] * along, axis=1)
    return apart


def _fit_point(component: _Component) -> _Fit:
    """A point: a filled circle."""
    height, width = component.ink.shape
    if not 0.6 < height / width < 1.67:
        return None
    ys, xs = np.nonzero(component.ink)
    radius = np.hypot((xs + 0.5) / width * 2 - 1, (ys + 0.5) / height * 2 - 1)
    filled = float((radius < 1.08).sum()) / (np.pi / 4 * height * width)
    if filled < 0.8 or float((radius > 1.12).mean()) > 0.06:
        return None
    centre = ((component.x1 + component.x2) / 2, (component.y1 + component.y2) / 2)
    return filled, Point(*centre, radius=(height + width) / 4)


def _fit_arrow(component: _Component) -> _Fit:
    """An arrow: a shaft with a head at one end."""
    ys, xs = np.nonzero(component.ink)
    points = np.stack([xs + 0.5 + component.x1, ys + 0.5 + component.y1], 1)
    centred = points - points.mean(0)
    _, _, axes = np.linalg.svd(centred[:: max(len(centred) // 4000, 1)], full_matrices=False)
    # An arrow is symmetric about its shaft, which need not be the longer axis.
    main = min(axes, key=lambda axis: abs(_skew(centred @ np.array([-axis[1], axis[0]]))))
    along, across = centred @ main, centred @ np.array([-main[1], main[0]])
    low, high = float(along.min()), float(along.max())
    if high - low < 8 or not component.thin():
        return None
    shaft = np.abs(across) <= max(2.0, 0.06 * (high - low))
    steps = int((high - low) / 2)
    full = len(np.unique(((along[shaft] - low) / 2).astype(int))) / steps
    if full < 0.85 or abs(_skew(across)) > 1 or shaft.mean() > 0.9:
        return None
    # The half with the head has more ink, farther from the axis.
    middle = (low + high) / 2
    beside = across**2 + (high - low) / 20
    first, last = float(beside[along < middle].sum()), float(beside[along >= middle].sum())
    ends = points[along.argmin()], points[along.argmax()]
    (tail, tip) = ends if last >= first else ends[::-1]
    return float(component.pixels), Arrow(
        tail=(float(tail[0]), float(tail[1])), tip=(float(tip[0]), float(tip[1]))
    )


_FITS = {
    "box": _fit_box,
    "ellipse": _fit_ellipse,
    "triangle": _fit_triangle,
    "point": _fit_point,
    "scribble": _fit_line,
    "contour": _fit_line,
    "arrow": _fit_arrow,
}


def _skew(values: NDArray[np.float64]) -> float:
    """Skewness of values about 0; 0 for a symmetric distribution."""
    spread = float((values**2).mean())
    return float((values**3).mean()) / max(math.sqrt(spread) ** 3, 1e-9)
