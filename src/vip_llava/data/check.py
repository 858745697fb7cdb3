"""Check a data file before training on it.

`check` reads a file once and reports the kinds of rows, bad rows with reasons, a histogram of
lengths, missing images and duplicate rows. The report is a value with a JSON form. This module
changes no row and does not know terminals.
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

from vip_llava.data.fields import DataRow
from vip_llava.data.records import parse_row
from vip_llava.data.region_rows import VcrRow
from vip_llava.data.tasks import arrange
from vip_llava.errors import DataError, ImageError, VipLlavaError
from vip_llava.images import open_image

if TYPE_CHECKING:
    from vip_llava.data.reading import RowFile

__all__ = ["DataReport", "HistogramBin", "RowProblem", "check"]

Progress = Callable[[int, int], None]
#: Row number -> its length in tokens. Raises DataError if training can't use the row.
Measure = Callable[[int], int]

# Size of an image that is not opened: no box lies outside.
_ANY_SIZE = (1 << 14, 1 << 14)
#: Upper ends of the bins of the histogram; the last bin has none.
BIN_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One bad row: its number in the file (from 1), its id, and the reason."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class HistogramBin:
    """Number of rows with `low <= length < high` (None: no upper end)."""

    low: int
    high: int | None
    rows: int


@dataclass(slots=True)
class DataReport:
    """The result of `check`.

    Attributes:
        kinds: number of good rows of each kind.
        problems: the first bad rows; `bad` counts all.
        missing: image name -> number of rows that name it.
        repeated_ids: number of the first row -> numbers of the later rows with the same id.
        repeated_rows: the same for rows with the same content.
        lengths: of the conversations in `unit` ("words" or "tokens"), in the order of the file,
            without rows whose image is missing if the unit is tokens.
    """

    file: str
    unit: str = "words"
    rows: int = 0
    bad: int = 0
    text_only: int = 0
    images: int = 0
    images_checked: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[RowProblem] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    repeated_ids: dict[int, list[int]] = field(default_factory=dict)
    repeated_rows: dict[int, list[int]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the file has no bad row and no missing image."""
        return not self.bad and not self.missing

    def histogram(self) -> tuple[HistogramBin, ...]:
        """Bins from the first to the last that has rows."""
        bins = []
        for low, high in zip((0, *BIN_EDGES), (*BIN_EDGES, None), strict=True):
            rows = sum(low <= n and (high is None or n < high) for n in self.lengths)
            bins.append(HistogramBin(low, high, rows))
        filled = [index for index, each in enumerate(bins) if each.rows]
        return tuple(bins[filled[0] : filled[-1] + 1]) if filled else ()

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
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
            "images_checked": self.images_checked,
            "missing_images": dict(self.missing.most_common()),
            "repeated_ids": _groups(self.repeated_ids),
            "repeated_rows": _groups(self.repeated_rows),
            "length": {
                "unit": self.unit,
                "total": sum(ordered),
                "median": ordered[len(ordered) // 2] if ordered else None,
                "longest": ordered[-1] if ordered else None,
                "histogram": [
                    {"from": each.low, "below": each.high, "rows": each.rows}
                    for each in self.histogram()
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
) -> DataReport:
    """Check the rows of a data file.

    Args:
        rows: the opened file.
        images: the folder of the images; None skips the check for missing ones.
        open_images: decode every image and check that the regions lie inside it.
        measure: row number -> tokens of its training sample; without it, words are counted.
        most: the number of rows to check, from the first; None checks all.
        most_problems: the number of bad rows that are kept with their reasons.
        progress: called with (rows done, all rows).
    """
    report = DataReport(rows.name, "words" if measure is None else "tokens")
    report.images_checked = images is not None
    checker = _Checker(report, images, open_images, measure)
    total = len(rows) if most is None else min(most, len(rows))
    for index in range(total):
        name = ""
        try:
            raw = rows.raw(index)
            name = str(raw.get("id", "")) if isinstance(raw, Mapping) else ""
            checker.add(index, raw, parse_row(raw))
        except VipLlavaError as error:
            report.bad += 1
            if len(report.problems) < most_problems:
                reason = str(error).removeprefix(f"id {name!r}: ")
                report.problems.append(RowProblem(index + 1, name, reason))
        report.rows += 1
        if progress is not None:
            progress(index + 1, total)
    report.images = len(checker.found)
    return report


class _Checker:
    """The state of one pass over a file."""

    def __init__(
        self, report: DataReport, images: Path | None, open_images: bool, measure: Measure | None
    ) -> None:
        self.report = report
        self.folder = images
        self.open_images = open_images
        self.measure = measure
        self.found: dict[str, bool] = {}
        self._ids: dict[str, int] = {}
        self._contents: dict[bytes, int] = {}

    def add(self, index: int, raw: Mapping[str, Any], row: DataRow) -> None:
        """Check one parsed row. Raises a VipLlavaError if it is bad."""
        self._note_duplicates(index + 1, raw, row.id)
        present = self._find_images(row)
        length = self._length(index, row, present)
        self.report.kinds[row.kind] += 1
        self.report.text_only += not row.images
        if length is not None:
            self.report.lengths.append(length)

    def _note_duplicates(self, number: int, raw: Mapping[str, Any], name: str) -> None:
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

    def _find_images(self, row: DataRow) -> bool:
        """Whether all images of a row exist. Missing ones are added to the report."""
        absent = []
        for name in row.images:
            if name not in self.found:
                self.found[name] = self.folder is None or (self.folder / name).is_file()
            if not self.found[name]:
                absent.append(name)
        self.report.missing.update(absent)
        return not absent

    def _length(self, index: int, row: DataRow, present: bool) -> int | None:
        if self.measure is not None:
            return self.measure(index) if present else None
        if self.folder is None and isinstance(row, VcrRow) and row.boxes is None:
            return None  # its boxes are in a file in the folder of images
        size = _ANY_SIZE
        if self.open_images and present and self.folder is not None:
            sizes = [_size(self.folder, name) for name in row.images]
            size = sizes[0] if sizes else size
        # The marks are random, but the number of words hardly depends on them.
        marked = arrange(row, size, random.Random(0), images=self.folder)
        if not any(turn.role == "assistant" and (turn.text or "").strip() for turn in marked.turns):
            raise DataError("no turn has an answer to learn")
        return sum(len((turn.text or "").split()) for turn in marked.turns)


def _size(folder: Path, name: str) -> tuple[int, int]:
    """Width and height of an image. Raises DataError if it can't be decoded."""
    try:
        return open_image(folder / name).size
    except ImageError as error:
        raise DataError(f"image {name!r}: {error}") from None
