"""A mark that is already on the image -> a Region of its place.

People draw on images themselves and ask about "the red rectangle". The words say what to look for: a
shape and one of the nine named colours. Pixels near that colour are joined into connected pieces, from
strict to tolerant (opaque ink, then ink that shines through or was blurred by JPEG), and the first
piece that has the form of the shape is it. What looks like the mark only by its colour is left alone:
nothing found is an answer too.

It deliberately does not know questions in other words, models or what the place is used for.
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
from vip_llava.regions.shapes import SHAPES, Arrow, Box, Ellipse, Point, Region, Size

__all__ = ["NamedMark", "find_mark", "find_marks", "named_marks"]

#: Pixels of the longer side at which the search is done; thin lines of huge photos survive it.
_SIDE = 640
#: How much of a pixel must be ink, from strict to tolerant.
_OPACITIES = (0.94, 0.8, 0.62)
#: Forms that much in a photo resembles are looked for in good ink only.
_STRICT = {"triangle", "scribble", "contour", "arrow"}
_GAPS = (3, 9)
_SMALLEST = 24  # pixels of ink; less can't be told from noise
_PIECES = 12  # the largest pieces that are looked at

_Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NamedMark:
    """A mark that a text speaks of; `words` are its own ("red rectangle")."""

    shape: str
    color: str
    words: str


# The trained nouns, and what people say for three of them.
_NOUNS = {kind.words[1]: shape for shape, kind in SHAPES.items()}
_NOUNS |= {"box": "box", "circle": "ellipse", "dot": "point"}
_NAMED = re.compile(
    rf"\b({'|'.join(PALETTE)})\s+({'|'.join(sorted(_NOUNS, key=len, reverse=True))})\b",
    re.IGNORECASE,
)


def named_marks(text: str) -> tuple[NamedMark, ...]:
    """The marks that a text names by colour and shape, each once, in the text's order."""
    found: dict[tuple[str, str], NamedMark] = {}
    for match in _NAMED.finditer(text):
        color, noun = match[1].lower(), match[2].lower()
        shape = _NOUNS[noun]
        found.setdefault((shape, color), NamedMark(shape, color, f"{color} {noun}"))
    return tuple(found.values())


def find_marks(image: Image.Image, texts: Sequence[str]) -> tuple[tuple[str, Region], ...]:
    """The marks that `texts` name and that are drawn on an RGB image: (words, Region) pairs.

    Words are those of the text ("red rectangle"). Regions are in pixels of the image, with ids "1",
    "2", ...; a mark that is named but not found is left out.
    """
    found: list[tuple[str, Region]] = []
    for mark in named_marks("\n".join(texts)):
        region = find_mark(image, mark.shape, mark.color)
        if region is not None:
            found.append((mark.words, region.changed(id=str(len(found) + 1))))
    return tuple(found)


def find_mark(image: Image.Image, shape: str, color: str) -> Region | None:
    """Where a mark of that shape and named colour is drawn on an RGB image; None if nowhere.

    The result is in pixels of the image: an Ellipse, Point or Arrow for those shapes, and the Box
    around it for every other one. Its colour is `color`. Filled masks are never found: too much in a
    photo looks like one. KeyError for an unknown colour.
    """
    if shape not in _FITS:
        return None
    fits = _FITS[shape]
    scale = min(_SIDE / max(image.size), 1.0)
    ink = np.array(PALETTE[color], np.float32)
    pixels = np.asarray(image, np.float32)
    opacity = _opacity(pixels, ink)
    for least in _OPACITIES[:2] if shape in _STRICT else _OPACITIES:
        mask = _shrunk(opacity >= least, scale)
        # Another mark's line may lie over this one: what it cuts is joined where nothing else fits.
        for gap in _GAPS:
            found = [each for each in map(fits, _pieces(mask, gap)) if each is not None]
            if found:
                best = max(found, key=lambda each: each[0])[1]
                size = (mask.shape[1], mask.shape[0])
                return _scaled(best, size, image.size).changed(color=color)
    return None


def _opacity(pixels: NDArray[np.float32], ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each pixel [H, W] the most ink (0..1) that it can hold: c = a ink + (1 - a) photo.

    The photo's value lies in 0..255, which bounds a for each channel; the least bound counts.
    """
    # Where ink is 255 a pixel below it needs a <= c / 255; where 0, a <= 1 - c / 255; in between
    # both the darkest and the brightest photo bound it.
    low = np.where(ink > 0, pixels / np.maximum(ink, 1), 1.0)
    high = np.where(ink < 255, (255 - pixels) / np.maximum(255 - ink, 1), 1.0)
    bound: NDArray[np.float32] = np.minimum(low, high).min(axis=2).astype(np.float32)
    return bound


def _shrunk(mask: _Mask, scale: float) -> _Mask:
    """The mask at a smaller scale with gaps of a pixel closed; a cell is set where any pixel is."""
    image = Image.fromarray(mask.astype(np.uint8) * 255, "L")
    if scale < 1:
        step = int(1 / scale)
        if step > 1:
            image = image.filter(ImageFilter.MaxFilter(step | 1))
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.NEAREST)
    return np.asarray(image) > 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """One connected piece of ink: its box (x1, y1, x2, y2 exclusive) and its pixels inside it.

    `within` is the longer side of the image.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    ink: _Mask
    within: int

    @property
    def count(self) -> int:
        return int(self.ink.sum())

    def thin(self) -> bool:
        """Whether hardly any of its ink has ink all around it."""
        reach = max(self.within // 40, 3)
        total = np.pad(self.ink, reach + 1).cumsum(0).cumsum(1)
        side = 2 * reach + 1
        around = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
        around = around + total[:-side, :-side]
        return float((around > 0.97 * side * side).sum()) < 0.02 * self.count

    @property
    def box(self) -> tuple[float, float, float, float]:
        return float(self.x1), float(self.y1), float(self.x2), float(self.y2)


def _pieces(mask: _Mask, gap: int) -> list[_Piece]:
    """The largest connected pieces; pixels less than `gap` (odd) apart count as touching."""
    wide = np.asarray(
        Image.fromarray(mask.astype(np.uint8) * 255, "L").filter(ImageFilter.MaxFilter(gap))
    )
    labels = _labels(wide > 0)
    if labels is None:
        return []
    inside = np.where(mask, labels, 0)
    counts = np.bincount(inside.ravel())
    counts[0] = 0
    pieces = []
    for label in counts.argsort()[::-1][:_PIECES].tolist():
        if counts[label] < _SMALLEST:
            break
        ys, xs = np.nonzero(inside == label)
        x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        pieces.append(_Piece(x1, y1, x2, y2, inside[y1:y2, x1:x2] == label, max(mask.shape)))
    return pieces


def _labels(mask: _Mask) -> NDArray[np.int64] | None:
    """A number from 1 for each connected piece (diagonals touch), 0 elsewhere; None for no ink.

    Rows are cut into runs; runs of neighbouring rows that touch are united.
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


# How well a piece has the form of a shape, and the Region it then is; None where it has not.
_Fit = tuple[float, Region] | None


def _rectangle(piece: _Piece) -> _Fit:
    """Ink along all four sides of its box."""
    height, width = piece.ink.shape
    if min(height, width) < 5:
        return None
    band = max(2, round(0.06 * min(height, width)))
    sides = (
        piece.ink[:band].any(0).mean(),
        piece.ink[-band:].any(0).mean(),
        piece.ink[:, :band].any(1).mean(),
        piece.ink[:, -band:].any(1).mean(),
    )
    if min(sides) < 0.55 or sum(sides) < 3.2:
        return None
    # A filled red thing has ink along its sides too; a line leaves the middle free.
    free = (
        1 - piece.ink[band * 2 : -band * 2, band * 2 : -band * 2].mean()
        if min(height, width) > 4 * band + 2
        else 0.5
    )
    if free < 0.35:
        return None
    return sum(sides) / 4 * free * (height + width), Box(*piece.box)


def _oval(piece: _Piece) -> _Fit:
    """Ink all around the ellipse that its box holds, and little elsewhere."""
    height, width = piece.ink.shape
    if min(height, width) < 6:
        return None
    ys, xs = np.nonzero(piece.ink)
    u, v = (xs + 0.5) / width * 2 - 1, (ys + 0.5) / height * 2 - 1
    radius = np.hypot(u, v)
    near = (radius > 0.72) & (radius < 1.16)
    if near.mean() < 0.7:
        return None
    angles = ((np.arctan2(v[near], u[near]) + np.pi) / (2 * np.pi) * 36).astype(int) % 36
    around = len(np.unique(angles)) / 36
    if around < 0.7:
        return None
    return around * float(near.mean()) * (height + width), Ellipse(*piece.box)


def _line(piece: _Piece) -> _Fit:
    """Ink that is nowhere thick: the longer, the more likely."""
    if max(piece.ink.shape) < 8 or not piece.thin():
        return None
    return float(piece.count), Box(*piece.box)


def _corners(piece: _Piece) -> _Fit:
    """A line along the sides of the largest triangle that its ink spans."""
    if _line(piece) is None:
        return None
    ys, xs = np.nonzero(piece.ink)
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
    reach = max(3.0, 0.08 * max(piece.ink.shape))
    sides = list(pairwise(ends))
    near = np.min([_distances(points, a, b) for a, b in sides], axis=0) <= reach
    if near.mean() < 0.85 or min(_covered(points, a, b, reach) for a, b in sides) < 0.85:
        return None
    return float(near.sum()), Box(*piece.box)


def _covered(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64], reach: float
) -> float:
    """The share of the stretch between two points that has a point [N, 2] beside it."""
    along = end - start
    length = float(np.hypot(*along))
    close = points[_distances(points, start, end) <= reach]
    steps = max(int(length / 2), 1)
    places = ((close - start) @ along / max(length, 1e-9) ** 2 * steps).astype(int)
    return len(np.unique(places.clip(0, steps - 1))) / steps


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far points [N, 2] are from the stretch between two points."""
    along = end - start
    share = ((points - start) @ along / max(float(along @ along), 1e-9)).clip(0, 1)
    apart: NDArray[np.float64] = np.linalg.norm(points - start - share[:, None] * along, axis=1)
    return apart


def _dot(piece: _Piece) -> _Fit:
    """A round, filled spot."""
    height, width = piece.ink.shape
    if not 0.6 < height / width < 1.67:
        return None
    ys, xs = np.nonzero(piece.ink)
    radius = np.hypot((xs + 0.5) / width * 2 - 1, (ys + 0.5) / height * 2 - 1)
    filled = float((radius < 1.08).sum()) / (np.pi / 4 * height * width)
    if filled < 0.8 or float((radius > 1.12).mean()) > 0.06:
        return None
    centre = ((piece.x1 + piece.x2) / 2, (piece.y1 + piece.y2) / 2)
    return filled, Point(*centre, radius=(height + width) / 4)


def _pointer(piece: _Piece) -> _Fit:
    """A shaft with a head at one end."""
    ys, xs = np.nonzero(piece.ink)
    points = np.stack([xs + 0.5 + piece.x1, ys + 0.5 + piece.y1], 1)
    centred = points - points.mean(0)
    _, _, axes = np.linalg.svd(centred[:: max(len(centred) // 4000, 1)], full_matrices=False)
    # An arrow is the same on both sides of its shaft, which a broad head makes the shorter axis.
    main = min(axes, key=lambda axis: abs(_skew(centred @ np.array([-axis[1], axis[0]]))))
    along, across = centred @ main, centred @ np.array([-main[1], main[0]])
    low, high = float(along.min()), float(along.max())
    if high - low < 8 or not piece.thin():
        return None
    shaft = np.abs(across) <= max(2.0, 0.06 * (high - low))
    steps = int((high - low) / 2)
    full = len(np.unique(((along[shaft] - low) / 2).astype(int))) / steps
    if full < 0.85 or abs(_skew(across)) > 1 or shaft.mean() > 0.9:
        return None
    # A head is more ink in its half, and ink that leaves the axis; the shaft is neither.
    middle = (low + high) / 2
    beside = across**2 + (high - low) / 20
    first, last = float(beside[along < middle].sum()), float(beside[along >= middle].sum())
    ends = points[along.argmin()], points[along.argmax()]
    (tail, tip) = ends if last >= first else ends[::-1]
    return float(piece.count), Arrow(
        tail=(float(tail[0]), float(tail[1])), tip=(float(tip[0]), float(tip[1]))
    )


_FITS = {
    "box": _rectangle,
    "ellipse": _oval,
    "triangle": _corners,
    "point": _dot,
    "scribble": _line,
    "contour": _line,
    "arrow": _pointer,
}


def _skew(values: NDArray[np.float64]) -> float:
    """How lopsided values around 0 are; 0 for the same on both sides."""
    spread = float((values**2).mean())
    return float((values**3).mean()) / max(math.sqrt(spread) ** 3, 1e-9)


def _scaled(region: Region, small: Size, size: Size) -> Region:
    """A region found on the shrunk image on the real one."""
    return region.to_frame("unit", small).to_frame("pixel", size)
