"""COCO run-length masks in numpy: compressed counts, plain counts, and pixels.

Runs go down the columns (Fortran order) and alternate background, foreground, starting with
background. The compressed counts are COCO's: six bits a character, five of them data, deltas
against the run two before. Unlike pycocotools, the codec validates its input: a mask whose runs do
not fill its size is an error, not a shifted image. This module does not know regions or drawing.

Source of the format: the COCO API (`maskApi`); a test compares with pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import brief

__all__ = ["MAX_MASK_PIXELS", "MAX_RUNS", "Rle"]

#: Largest mask (height x width) and most runs that are accepted; a 16k x 16k image fits.
MAX_MASK_PIXELS = 1 << 28
MAX_RUNS = 4_000_000

Runs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rle:
    """One mask: `size` is (height, width) in pixels, `counts` COCO's compressed text.

    Build it with `Rle.parse` (a COCO dictionary, compressed or not) or `Rle.from_mask`. Both give
    the canonical runs, so equal masks compare equal. Raises RegionError for an invalid mask.
    """

    size: tuple[int, int]
    counts: str
    # The decompressed runs, cached because drawing needs them each time.
    _cached: Runs | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, value: object, who: str = "rle") -> Rle:
        """From {"size": [h, w], "counts": text, bytes or list of run lengths}.

        `who` names the owner in messages.
        """
        if isinstance(value, Rle):
            return value
        if not isinstance(value, Mapping):
            raise RegionError(
                f'{who}: rle must be {{"size": [h, w], "counts": ...}}, not {type(value).__name__}'
            )
        unknown = sorted(map(str, set(value) - {"size", "counts"}))
        if unknown or len(value) != 2:
            what = f"unknown key {unknown[0]!r}" if unknown else "a key is missing"
            raise RegionError(f'{who}: rle: {what}; give exactly "size" and "counts"')
        size = _size(value["size"], who)
        runs = _runs(value["counts"], who)
        _check(runs, size, who)
        return cls(size, _compress(_canonical(runs)))

    @classmethod
    def from_mask(cls, mask: npt.ArrayLike) -> Rle:
        """From a (height, width) array; non-zero values belong to the mask."""
        pixels = np.asarray(mask)
        if pixels.ndim != 2:
            raise RegionError(f"rle: a mask has two dimensions (height, width), not {pixels.ndim}")
        size = _size(pixels.shape, "rle")
        flat = np.concatenate(([False], (pixels != 0).ravel(order="F")))
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        runs = np.diff(np.concatenate(([0], edges, [flat.size - 1])))
        _check(runs, size, "rle")
        return cls(size, _compress(_canonical(runs)))

    def runs(self) -> Runs:
        """Run lengths, background first: int64 [n], read-only."""
        if self._cached is None:
            runs = _canonical(_decompress(self.counts, "rle"))
            runs.setflags(write=False)
            object.__setattr__(self, "_cached", runs)
            return runs
        return self._cached

    def decode(self) -> npt.NDArray[np.bool_]:
        """The mask's pixels: bool [height, width], writable."""
        height, width = self.size
        runs = self.runs()
        flat = np.repeat(_alternating(runs.size).view(bool), runs)
        return np.ascontiguousarray(flat.reshape(width, height).T)

    def crop(self, margin: int = 0) -> tuple[npt.NDArray[np.uint8], int, int]:
        """The pixels within `bounds`: uint8 [h, w] of 0 and 1, and their left and top.

        `margin` empty pixels are added on every side; left and top include them.
        """
        runs = self.runs()
        x1, y1, x2, y2 = _bounds(runs, self.size[0])
        width, height = x2 - x1, y2 - y1
        # Only the bounds are decoded. No run crosses their top or bottom (a run over a column's end
        # makes them as high as the mask), so each run keeps its length at a new position.
        starts, lengths = np.cumsum(runs)[0:-1:2], runs[1::2]
        columns, rows = np.divmod(starts, self.size[0])
        edges = np.empty(2 * lengths.size + 2, dtype=np.int64)
        edges[0], edges[-1] = 0, width * height
        edges[1:-1:2] = (columns - x1) * height + (rows - y1)
        edges[2:-1:2] = edges[1:-1:2] + lengths
        flat = np.repeat(_alternating(edges.size - 1), np.diff(edges))
        pixels = np.zeros((height + 2 * margin, width + 2 * margin), dtype=np.uint8)
        pixels[margin : margin + height, margin : margin + width] = flat.reshape(width, height).T
        return pixels, x1 - margin, y1 - margin

    def area(self) -> int:
        """Number of foreground pixels."""
        return int(self.runs()[1::2].sum())

    def bounds(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels around the foreground; x2 and y2 are exclusive."""
        return _bounds(self.runs(), self.size[0])

    def to_json(self) -> dict[str, Any]:
        """COCO's compressed form: {"size": [h, w], "counts": text}."""
        return {"size": list(self.size), "counts": self.counts}


def _alternating(count: int) -> npt.NDArray[np.uint8]:
    """uint8 [count] of 0, 1, 0, 1, ...: the values of consecutive runs."""
    values = np.zeros(count, dtype=np.uint8)
    values[1::2] = 1
    return values


def _bounds(runs: Runs, height: int) -> tuple[int, int, int, int]:
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    if not runs[1::2].all():  # skip empty foreground runs
        starts, ends = starts[ends > starts], ends[ends > starts]
    left, top = np.divmod(starts, height)
    right, bottom = np.divmod(ends - 1, height)
    x1, x2 = int(left[0]), int(right[-1]) + 1
    if (left != right).any():  # a run over a column's end touches the last and the first row
        return x1, 0, x2, height
    return x1, int(top.min()), x2, int(bottom.max()) + 1


def _size(value: object, who: str) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise RegionError(f"{who}: rle: size must be [height, width]")
    for part in value:
        if (
            isinstance(part, bool)
            or not hasattr(part, "__index__")
            or not 1 <= int(part) <= 1 << 16
        ):
            raise RegionError(
                f"{who}: rle: size must be two whole numbers 1..65536 [height, width]"
            )
    height, width = int(value[0]), int(value[1])
    if height * width > MAX_MASK_PIXELS:
        raise RegionError(
            f"{who}: rle: {height} x {width} is over the limit of {MAX_MASK_PIXELS} pixels"
        )
    return height, width


def _runs(counts: object, who: str) -> Runs:
    """Run lengths from any accepted form of `counts`."""
    if isinstance(counts, np.ndarray):
        counts = counts.tolist()
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        return _decompress(counts, who)
    if not isinstance(counts, Sequence):
        raise RegionError(f"{who}: rle: counts must be text or a list of run lengths")
    if len(counts) > MAX_RUNS:
        raise RegionError(f"{who}: rle: more than {MAX_RUNS} runs")
    for run in counts:
        if (
            isinstance(run, bool)
            or not hasattr(run, "__index__")
            or not 0 <= int(run) <= MAX_MASK_PIXELS
        ):
            raise RegionError(
                f"{who}: rle: counts must be whole numbers 0..{MAX_MASK_PIXELS}, not {brief(run)}"
            )
    return np.array([int(run) for run in counts], dtype=np.int64)


def _check(runs: Runs, size: tuple[int, int], who: str) -> None:
    """Raise for a negative run, runs that do not fill the size, or a mask without foreground."""
    if runs.size and int(runs.min()) < 0:
        raise RegionError(f"{who}: rle: a run length is negative")
    total, wanted = int(runs.sum()), size[0] * size[1]
    if total != wanted:
        raise RegionError(
            f"{who}: rle: the runs add up to {total} pixels, but size {size[0]} x {size[1]} "
            f"(height x width) has {wanted}"
        )
    if not int(runs[1::2].sum()):
        raise RegionError(f"{who}: rle: the mask is empty; mark at least one pixel")


def _canonical(runs: Runs) -> Runs:
    """The same mask without inner runs of length zero, so that equal masks have equal runs."""
    inner = np.flatnonzero(runs[1:] == 0)
    if not inner.size:
        return runs
    values = np.repeat(np.arange(runs.size) % 2 == 1, runs > 0)
    lengths = runs[runs > 0]
    turns = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    merged = np.add.reduceat(lengths, turns)
    return np.concatenate(([0], merged)) if values[0] else merged


def _compress(runs: Runs) -> str:
    """COCO's text for canonical run lengths."""
    values = runs.copy()
    values[3:] -= runs[1:-2]
    digits: list[npt.NDArray[np.int64]] = []
    emitted: list[npt.NDArray[np.bool_]] = []
    rest, alive = values, np.ones(values.size, dtype=bool)
    while alive.any():
        digit = rest & 0x1F
        rest = rest >> 5
        more = np.where(digit & 0x10, rest != -1, rest != 0)
        digits.append(digit | np.where(more, 0x20, 0))
        emitted.append(alive)
        alive = alive & more
    table = np.stack(digits, axis=1) + 48
    return table[np.stack(emitted, axis=1)].astype(np.uint8).tobytes().decode("ascii")


def _decompress(text: str, who: str) -> Runs:
    """Run lengths of COCO's text. Raises RegionError for an invalid text."""
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise RegionError(
            f"{who}: rle: compressed counts hold a character outside '0'..'o'"
        ) from None
    if codes.size > 6 * MAX_RUNS:
        raise RegionError(
            f"{who}: rle: compressed counts are longer than {6 * MAX_RUNS} characters"
        )
    if not codes.size:
        return np.zeros(0, dtype=np.int64)
    if int(codes.min()) < 0 or int(codes.max()) > 63:
        raise RegionError(f"{who}: rle: compressed counts hold a character outside '0'..'o'")
    last = (codes & 0x20) == 0
    if not last[-1]:
        raise RegionError(f"{who}: rle: compressed counts are cut off in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if int(lengths.max()) > 7:
        raise RegionError(f"{who}: rle: a run length in the compressed counts is too large")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, 1 << (5 * lengths), 0)
    # From the fourth run on, the text holds the difference to the run two before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
