"""What all converters share: what a source is, what was left out, boxes, names, and JSON files.

A converter reads the files of one public data set as they are published and gives rows as the
original's training files have them: plain JSON objects, each checked by `parse_row`. It opens no
image, writes nothing and draws nothing; what the text of a row will be is said by `data.tasks`.
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
    "Account",
    "LeftOut",
    "Raw",
    "Source",
    "box_of_corner_and_size",
    "convert",
    "each",
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


class LeftOut(Exception):  # noqa: N818 - a signal, not an error
    """An entry that gives no row, by a rule of the converter and not by a mistake in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """What to read. `files`: in the order that the source names them.

    split: the part to take, None for all; keep: only images with these ids, None for all;
    prefix: folder that is put before every image's name (and the name of VCR's metadata).
    """

    files: tuple[Path, ...]
    split: str | None = None
    keep: frozenset[str] | None = None
    prefix: str = ""

    def wants(self, image_id: object, split: object = None) -> bool:
        """Whether an entry of this image and this part of the data set is asked for."""
        if self.split is not None and split is not None and str(split) != self.split:
            return False
        return self.keep is None or str(image_id) in self.keep


@dataclass(slots=True)
class Account:
    """What became of the entries: rows given, entries left out by a rule, and failures."""

    failures: Failures
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


Read = Callable[[Raw, Account], Iterator[JsonRow]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One public data set: what it is called, which files it has, and how they are read.

    needs: the files in order, in words; optional: how many of the last ones may be left out;
    splits: the parts that its own files tell apart (the first is taken if none is named).
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    read: Read
    optional: int = 0
    splits: tuple[str, ...] = ()

    def check(self, raw: Raw) -> None:
        """DataError if the number of files is wrong, one does not exist, or the split is unknown."""
        least = len(self.needs) - self.optional
        if not least <= len(raw.files) <= len(self.needs):
            raise DataError(
                f"{self.name}: {len(raw.files)} files given; it takes {', '.join(self.needs)}"
                + (f" (the last {self.optional} may be left out)" if self.optional else "")
            )
        for path, wanted in zip(raw.files, self.needs, strict=False):
            if not path.exists():
                raise DataError(f"{path}: no such file; {self.name} needs here: {wanted}")
            if path.is_file():
                _refuse_pickle(path)  # before a long file is read
        if raw.split is not None and raw.split not in self.splits:
            known = ", ".join(self.splits) or "none: its files hold one part each"
            raise DataError(f"{self.name}: no split {raw.split!r}; there are {known}")


def convert(source: Source, raw: Raw, account: Account) -> Iterator[JsonRow]:
    """The rows of a source, in the order of its files.

    Every row is checked against the schema. An entry that breaks the format goes to
    `account.failures`, which stops with DataError past its limit.
    """
    source.check(raw)
    for row in source.read(raw, account):
        try:
            parse_row(row)
        except DataError as error:
            account.failures.add(source.name, str(row.get("id", "")), str(error))
            continue
        account.rows += 1
        yield row


def each(
    entries: Iterable[tuple[str, Entry]],
    build: Callable[[Entry], JsonRow],
    account: Account,
) -> Iterator[JsonRow]:
    """A row of every entry; entries come with a few words on where they are."""
    for where, entry in entries:
        account.failures.seen()
        try:
            row = build(entry)
        except LeftOut as rule:
            account.left_out[str(rule)] += 1
        except KeyError as error:
            account.failures.add(where, "", f"{error} is missing or refers to nothing")
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            account.failures.add(where, "", str(error))
        else:
            yield row


def box_of_corner_and_size(values: Iterable[Any]) -> list[float | int]:
    """[x1, y1, x2, y2] of left, top, width, height. LeftOut if it has no area."""
    x, y, width, height = (_number(value) for value in values)
    if width <= 0 or height <= 0:
        raise LeftOut("a box without area")
    # A box that begins outside the image is cut at its edge, as the data sets' own tools do.
    left, top, right, bottom = max(x, 0), max(y, 0), x + width, y + height
    if right <= 0 or bottom <= 0:
        raise LeftOut("a box outside the image")
    return [_short(value) for value in (left, top, right, bottom)]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number of a box")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number of a box")
    return number


def _short(value: float) -> float | int:
    """A number for JSON: whole ones without a point, others with two digits."""
    return int(value) if value == int(value) else round(value, 2)


def image_name(name: Any, raw: Raw) -> str:
    """The name of an image (or another file of the data set) as a row has it: prefix and name."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{name!r} is no file name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leaves the folder of images; a relative name is wanted")
    return str(PurePosixPath(raw.prefix) / path) if raw.prefix else str(path)


def read_json(path: Path, *keys: str) -> Any:
    """The content of a JSON file; with `keys`, an object that must have them.

    Raises DataError that says where the text stops being JSON or which key is missing.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder, where a file is expected")
    _refuse_pickle(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if keys:
        if not isinstance(content, Mapping):
            raise DataError(f"{path}: a JSON object with {', '.join(keys)} is expected")
        absent = [key for key in keys if key not in content]
        if absent:
            found = ", ".join(list(map(str, content))[:6]) or "nothing"
            raise DataError(f"{path}: {absent[0]!r} is missing; the file has {found}")
    return content


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file or a JSON list, each with where it is.

    One object is in memory at a time; the largest of these files would take many gigabytes.
    """
    _refuse_pickle(path)
    entries = RowFile.open(path)
    for index in range(len(entries)):
        yield f"{path.name}: row {index + 1}", entries.raw(index)


def _refuse_pickle(path: Path) -> None:
    """Pickles run code when they are opened; say how to make JSON of one elsewhere."""
    with path.open("rb") as stream:
        head = stream.read(2)
    known = path.suffix.lower() in (".p", ".pkl", ".pickle")
    if known or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        raise DataError(
            f"{path}: a pickle. Opening one can run any code, so this program never does. If you "
            f"trust where it came from, make JSON of it once: {_UNPICKLE} "
            f"'{path.name}' '{path.stem}.json'"
        )
