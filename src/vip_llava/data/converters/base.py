"""What converters share: their description, the report, and helpers for boxes, names and JSON files.

A converter reads the published files of one public data set and yields rows in the format of the
original's training files: JSON objects, each validated by `parse_row`. It opens no image and writes no
file; `data.tasks` writes the text of a row.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vip_llava.data.failures import Failures
from vip_llava.data.reading import RowFile
from vip_llava.data.records import parse_row
from vip_llava.errors import DataError

__all__ = [
    "ConversionReport",
    "Converter",
    "RawFiles",
    "SkipEntry",
    "box_of_corner_and_size",
    "build_rows",
    "convert",
    "image_name",
    "read_json",
    "read_lines",
]

Entry = TypeVar("Entry")
JsonRow = dict[str, Any]

_UNPICKLE = (
    "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb'), "
    "encoding='latin1'), open(sys.argv[2], 'w'))\""
)


class SkipEntry(Exception):  # noqa: N818 - a signal, not an error
    """Raised for an entry that a rule of the converter excludes; its message is the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFiles:
    """The input of a converter.

    Attributes:
        files: in the order of `Converter.needs`.
        split: the split to convert; None for all.
        keep: ids of the images to convert; None for all.
        prefix: folder that is prepended to image names (and names of VCR metadata).
    """

    files: tuple[Path, ...]
    split: str | None = None
    keep: frozenset[str] | None = None
    prefix: str = ""

    def wants(self, image_id: object, split: object = None) -> bool:
        """Whether an entry of this image and split is to be converted."""
        if self.split is not None and split is not None and str(split) != self.split:
            return False
        return self.keep is None or str(image_id) in self.keep


@dataclass(slots=True)
class ConversionReport:
    """Counts of a conversion: rows, skipped entries by rule, and failures."""

    failures: Failures
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


Read = Callable[[RawFiles, ConversionReport], Iterator[JsonRow]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """A public data set and how to read it.

    Attributes:
        name: on the command line.
        kind: of the rows.
        needs: descriptions of the files, in order.
        read: yields the rows.
        optional: number of trailing files that may be omitted.
        splits: the splits that the files distinguish; the first is the default.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    read: Read
    optional: int = 0
    splits: tuple[str, ...] = ()

    def check(self, raw: RawFiles) -> None:
        """Raise DataError for a wrong number of files, a missing file, or an unknown split."""
        least = len(self.needs) - self.optional
        if not least <= len(raw.files) <= len(self.needs):
            raise DataError(
                f"{self.name}: {len(raw.files)} files given; it takes {', '.join(self.needs)}"
                + (f" (the last {self.optional} may be omitted)" if self.optional else "")
            )
        for path, wanted in zip(raw.files, self.needs, strict=False):
            if not path.exists():
                raise DataError(f"{path}: no such file; {self.name} needs here: {wanted}")
            if path.is_file():
                _refuse_pickle(path)
        if raw.split is not None and raw.split not in self.splits:
            known = ", ".join(self.splits) or "none: its files hold one split each"
            raise DataError(f"{self.name}: no split {raw.split!r}; there are {known}")


def convert(converter: Converter, raw: RawFiles, report: ConversionReport) -> Iterator[JsonRow]:
    """The rows of a data set, in the order of its files.

    Every row is validated. An entry that violates the format is added to `report.failures`, which
    raises DataError past its limit.
    """
    converter.check(raw)
    for row in converter.read(raw, report):
        try:
            parse_row(row)
        except DataError as error:
            report.failures.add(converter.name, str(row.get("id", "")), str(error))
            continue
        report.rows += 1
        yield row


def build_rows(
    entries: Iterable[tuple[str, Entry]],
    build: Callable[[Entry], JsonRow],
    report: ConversionReport,
) -> Iterator[JsonRow]:
    """Build a row of every entry (location, entry). Counts skipped and failed ones."""
    for where, entry in entries:
        report.failures.seen()
        try:
            row = build(entry)
        except SkipEntry as rule:
            report.skipped[str(rule)] += 1
        except KeyError as error:
            report.failures.add(where, "", f"{error} is missing or refers to a missing entry")
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            report.failures.add(where, "", str(error))
        else:
            yield row


def box_of_corner_and_size(values: Iterable[Any]) -> list[float | int]:
    """[x1, y1, x2, y2] of left, top, width, height. Raises SkipEntry for a box without area."""
    x, y, width, height = (_number(value) for value in values)
    if width <= 0 or height <= 0:
        raise SkipEntry("a box without area")
    # A box that begins outside the image is clipped, as the data sets' own tools do.
    left, top, right, bottom = max(x, 0), max(y, 0), x + width, y + height
    if right <= 0 or bottom <= 0:
        raise SkipEntry("a box outside the image")
    return [_short(value) for value in (left, top, right, bottom)]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a finite number of a box")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number of a box")
    return number


def _short(value: float) -> float | int:
    """A number for JSON: an int if it is whole, else rounded to two digits."""
    return int(value) if value == int(value) else round(value, 2)


def image_name(name: Any, raw: RawFiles) -> str:
    """The name of an image or metadata file with the prefix. Raises ValueError for an unsafe one."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{name!r} is not a file name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is outside the folder of images; give a relative name")
    return str(PurePosixPath(raw.prefix) / path) if raw.prefix else str(path)


def read_json(path: Path, *keys: str) -> Any:
    """The content of a JSON file. With `keys`, it must be an object that has them.

    Raises DataError that locates invalid JSON or names the missing key.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file")
    _refuse_pickle(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if keys:
        if not isinstance(content, Mapping):
            raise DataError(f"{path}: must be a JSON object with {', '.join(keys)}")
        absent = [key for key in keys if key not in content]
        if absent:
            found = ", ".join(list(map(str, content))[:6]) or "nothing"
            raise DataError(f"{path}: {absent[0]!r} is missing; the file has {found}")
    return content


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file or a JSON array, each with its location.

    One object is in memory at a time, because the largest of these files take many gigabytes.
    """
    _refuse_pickle(path)
    entries = RowFile.open(path)
    for index in range(len(entries)):
        yield f"{path.name}: row {index + 1}", entries.raw(index)


def _refuse_pickle(path: Path) -> None:
    """Raise DataError for a pickle, which runs code when loaded, with instructions to convert it."""
    with path.open("rb") as stream:
        head = stream.read(2)
    known = path.suffix.lower() in (".p", ".pkl", ".pickle")
    if known or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        raise DataError(
            f"{path}: a pickle. Loading one can run any code, so this program does not. If you "
            f"trust its origin, convert it to JSON once: {_UNPICKLE} "
            f"'{path.name}' '{path.stem}.json'"
        )
