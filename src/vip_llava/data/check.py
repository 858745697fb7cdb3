"""What a data file holds and what is wrong with it, found without training on it.

`check` goes through a file once: kinds of rows, bad rows with reasons, a histogram of lengths,
images that are missing, rows that are there twice. Everything found is a value with a JSON form;
how it looks in a terminal is not known here, and no row is changed or repaired.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.data.fields import Row
from vip_llava.data.records import VcrRow, parse_row
from vip_llava.data.tasks import arrange
from vip_llava.errors import DataError, ImageError, VipLlavaError
from vip_llava.images import open_image

if TYPE_CHECKING:
    from vip_llava.data.reading import RowFile

__all__ = ["Bin", "Problem", "Report", "check"]

Progress = Callable[[int, int], None]
#: Length in tokens of row number i of the file; raises DataError if training could not use it.
Measure = Callable[[int], int]

# Stands for an image that is not opened: no box lies outside.
_ANY_SIZE = (1 << 14, 1 << 14)
#: Upper ends of the bars of the histogram; the last bar has none.
BARS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Problem:
    """One row that can't be used: its number in the file (from 1), its id, and why."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of the histogram: rows with `low <= length < high` (None: no upper end)."""

    low: int
    high: int | None
    rows: int


@dataclass(slots=True)
class Report:
    """What `check` found.

    kinds: rows of each kind, bad ones not counted. problems: the first of the bad rows; `bad`
    counts all. missing: image name -> number of rows that want it. repeated_ids, repeated_rows:
    number of the first row -> numbers of the later ones with the same id, or the same content.
    lengths: of the conversations in `unit` ("words" or "tokens"), in the order of the file; tokens
    are not known of a row whose image is missing.
    """

    file: str
    unit: str = "words"
    rows: int = 0
    bad: int = 0
    text_only: int = 0
    images: int = 0
    looked_for_images: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    repeated_ids: dict[int, list[int]] = field(default_factory=dict)
    repeated_rows: dict[int, list[int]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether training would meet no bad row and no missing image."""
        return not self.bad and not self.missing

    def histogram(self) -> tuple[Bin, ...]:
        """Bars from the first to the last that has rows."""
        edges = [0, *BARS]
        bars = []
        for low, high in zip(edges, [*BARS, None], strict=True):
            rows = sum(low <= n and (high is None or n < high) for n in self.lengths)
            bars.append(Bin(low, high, rows))
        filled = [place for place, bar in enumerate(bars) if bar.rows]
        return tuple(bars[filled[0] : filled[-1] + 1]) if filled else ()

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        ordered = sorted(self.lengths)
        return {
            "file": self.file,
            "usable": self.usable,
            "rows": self.rows,
            "kinds": dict(self.kinds.most_common()),
            "text_only": self.text_only,
            "images": self.images,
            "bad_rows": self.bad,
            "problems": [
                {"row": each.row, "id": each.id, "reason": each.reason} for each in self.problems
            ],
            "looked_for_images": self.looked_for_images,
            "missing_images": dict(self.missing.most_common()),
            "repeated_ids": _groups(self.repeated_ids),
            "repeated_rows": _groups(self.repeated_rows),
            "length": {
                "unit": self.unit,
                "total": sum(ordered),
                "median": ordered[len(ordered) // 2] if ordered else None,
                "longest": ordered[-1] if ordered else None,
                "histogram": [
                    {"from": bar.low, "below": bar.high, "rows": bar.rows}
                    for bar in self.histogram()
                ],
            },
        }


def _groups(repeated: Mapping[int, list[int]]) -> list[list[int]]:
    return [[first, *others] for first, others in repeated.items()]


def check(
    rows: RowFile,
    images: Path | None = None,
    *,
    open_images: bool = False,
    measure: Measure | None = None,
    most: int | None = None,
    most_problems: int = 100,
    progress: Progress | None = None,
) -> Report:
    """Go through a data file and report.

    Args:
        rows: the opened file.
        images: folder that the images' names are relative to; None: they are not looked for.
        open_images: decode every image too, and see whether the regions fit into it.
        measure: makes the whole training sample of a row; without it, words are counted.
        most: look at the first rows only.
        most_problems: how many bad rows are kept with their reasons; all are counted.
        progress: called with (rows done, all rows).
    """
    report = Report(rows.name, "words" if measure is None else "tokens")
    report.looked_for_images = images is not None
    look = _Look(report, images, open_images, measure)
    total = len(rows) if most is None else min(most, len(rows))
    for index in range(total):
        name = ""
        try:
            raw = rows.raw(index)
            name = str(raw.get("id", "")) if isinstance(raw, Mapping) else ""
            look.row(index, raw, parse_row(raw))
        except VipLlavaError as error:
            report.bad += 1
            if len(report.problems) < most_problems:
                reason = str(error).removeprefix(f"id {name!r}: ")
                report.problems.append(Problem(index + 1, name, reason))
        report.rows += 1
        if progress is not None:
            progress(index + 1, total)
    report.images = len(look.known)
    return report


class _Look:
    """One pass over a file: what has been seen so far."""

    def __init__(
        self, report: Report, images: Path | None, open_images: bool, measure: Measure | None
    ) -> None:
        self.report = report
        self.folder = images
        self.open_images = open_images
        self.measure = measure
        self.known: dict[str, bool] = {}
        self._ids: dict[str, int] = {}
        self._contents: dict[bytes, int] = {}

    def row(self, index: int, raw: Mapping[str, Any], row: Row) -> None:
        """Look at one parsed row; raises the VipLlavaError of what makes it unusable."""
        self._repeated(index + 1, raw, row.id)
        present = self._present(row)
        length = self._length(index, row, present)
        self.report.kinds[row.kind] += 1
        self.report.text_only += not row.images
        if length is not None:
            self.report.lengths.append(length)

    def _repeated(self, number: int, raw: Mapping[str, Any], name: str) -> None:
        content = {key: value for key, value in raw.items() if key != "id"}
        text = json.dumps(content, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        first = self._contents.setdefault(digest, number)
        if first != number:
            self.report.repeated_rows.setdefault(first, []).append(number)
        if name:
            first = self._ids.setdefault(name, number)
            if first != number:
                self.report.repeated_ids.setdefault(first, []).append(number)

    def _present(self, row: Row) -> bool:
        """Whether all images of a row exist; the absent ones are written down."""
        absent = []
        for name in row.images:
            if name not in self.known:
                self.known[name] = self.folder is None or (self.folder / name).is_file()
            if not self.known[name]:
                absent.append(name)
        self.report.missing.update(absent)
        return not absent

    def _length(self, index: int, row: Row, present: bool) -> int | None:
        if self.measure is not None:
            return self.measure(index) if present else None
        if self.folder is None and isinstance(row, VcrRow) and row.boxes is None:
            return None  # its boxes are in a file beside the images
        size = _ANY_SIZE
        if self.open_images and present and self.folder is not None:
            sizes = [_size(self.folder, name) for name in row.images]
            size = sizes[0] if sizes else size
        # One draw of many: whatever is drawn, the words are nearly as many.
        marked = arrange(row, size, random.Random(0), images=self.folder)
        if not any(turn.role == "assistant" and (turn.text or "").strip() for turn in marked.turns):
            raise DataError("nothing would be learned: no turn has an answer")
        return sum(len((turn.text or "").split()) for turn in marked.turns)


def _size(folder: Path, name: str) -> tuple[int, int]:
    """Width and height of an image that can be decoded."""
    try:
        return open_image(folder / name).size
    except ImageError as error:
        raise DataError(f"image {name!r}: {error}") from None
