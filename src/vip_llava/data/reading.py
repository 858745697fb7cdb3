"""Rows of a file by number: JSON array, JSON Lines, Parquet, or a Hugging Face dataset.

A `RowFile` holds the positions of the rows and parses a row on access, so a file of a million rows
opens quickly and costs data workers little memory. This module does not know images, tokens or how
bad rows are handled.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

from vip_llava.data.fields import DataRow
from vip_llava.data.json_index import Spans, array_spans, line_spans
from vip_llava.data.records import parse_row
from vip_llava.errors import DataError, VipLlavaError

__all__ = ["RowFile", "Table"]


class Table(Protocol):
    """Raw rows by number: what each file format implements."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RowFile(Sequence[DataRow]):
    """The rows of one file or dataset; see `open`.

    `rows[i]` is the checked row, `rows.raw(i)` the object in the file, `rows.where(i)` its location
    for messages ("FILE: row 7", counted from 1). Can be pickled for worker processes.
    """

    def __init__(self, name: str, table: Table) -> None:
        self.name = name
        self._table = table

    @classmethod
    def open(cls, source: str | Path | Table) -> RowFile:
        """Open a JSON, JSON Lines or Parquet file (recognized by content), a folder written by
        `save_to_disk` of the `datasets` library, or a `datasets.Dataset`.

        Raises DataError for any other source and for broken JSON.
        """
        if isinstance(source, (str, Path)):
            path = Path(source)
            return cls(str(source), _folder(path) if path.is_dir() else _file(path))
        from vip_llava.data.tables import DatasetTable

        return cls(DatasetTable.name_of(source), DatasetTable(source))

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> DataRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[DataRow]: ...

    def __getitem__(self, index: int | slice) -> DataRow | list[DataRow]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = self._place(index)
        return parse_row(self.raw(place), where=self.where(place))

    def __iter__(self) -> Iterator[DataRow]:
        for index in range(len(self)):
            yield self[index]

    def __repr__(self) -> str:
        return f"RowFile({self.name!r}, {len(self)} rows)"

    def where(self, index: int) -> str:
        """The location of a row, for messages."""
        return f"{self.name}: row {self._place(index) + 1}"

    def raw(self, index: int) -> dict[str, Any]:
        """The row's object in the file, unchecked. Raises DataError if it is not an object."""
        place = self._place(index)
        try:
            value = self._table[place]
        except VipLlavaError as error:
            raise DataError(f"{self.where(place)}: {error}") from None
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise DataError(f"{self.where(place)}: a row must be a JSON object, not {kind}")
        return dict(value)

    def _place(self, index: int) -> int:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows; there is no row {index}")
        return place


class _JsonTable:
    """Rows at known positions of a memory-mapped text file."""

    def __init__(self, path: Path, spans: Spans) -> None:
        self._path, self._spans = path, spans
        self._stamp = _stamp(path)
        self._bytes: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int, /) -> Any:
        first, last = map(int, self._spans[index])
        text = self._open()[first:last]
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:  # broken JSON or broken UTF-8
            raise DataError(f"broken JSON at byte {first}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}

    def _open(self) -> mmap.mmap:
        if self._bytes is None:
            if _stamp(self._path) != self._stamp:
                raise DataError("the file has changed since it was opened")
            with self._path.open("rb") as stream:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._bytes


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _file(path: Path) -> Table:
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
            while head and not head.strip():
                head = stream.read(4096)
            start = stream.tell() - len(head)
            if head.startswith(b"PAR1") and not start:
                from vip_llava.data.tables import DatasetTable

                return DatasetTable.from_parquet(path)
            start += 3 if head.startswith(b"\xef\xbb\xbf") and not start else 0
            head = head.removeprefix(b"\xef\xbb\xbf")
            start += len(head) - len(head.lstrip())
            first = head.lstrip()[:1]
            if first == b"[":
                return _JsonTable(path, array_spans(stream, start, path))
            if first == b"{":
                return _JsonTable(path, line_spans(stream, start))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    raise DataError(
        f"{path} {'is empty' if not first else 'begins with ' + repr(head[:16])}: "
        "expected a JSON array, JSON Lines or Parquet file"
    )


def _folder(path: Path) -> Table:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{path} is a folder without a Hugging Face dataset (save_to_disk); "
            "name one file of rows"
        )
    from vip_llava.data.tables import DatasetTable

    return DatasetTable.from_folder(path)
