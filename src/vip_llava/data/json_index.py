"""Byte offsets of the rows of a JSON array or a JSON Lines file, found in one pass.

Only a window of the file is in memory at a time. The module does not know what a row means.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vip_llava.errors import DataError

__all__ = ["Spans", "array_spans", "line_spans"]

#: First byte and end of each row, [rows, 2].
Spans = npt.NDArray[np.int64]

WINDOW = 8 << 20
LARGEST_ROW = 256 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode
#: A truncated text fails this close to its end, except inside a string, which may begin earlier.
_NEAR_END = 16


def line_spans(stream: BinaryIO, start: int) -> Spans:
    """Rows of a JSON Lines file from byte `start` on. Blank lines are skipped."""
    spans = array("q")
    stream.seek(start)
    position = start
    for line in stream:
        if line.strip():
            spans.extend((position, position + len(line)))
        position += len(line)
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def array_spans(stream: BinaryIO, start: int, path: Path) -> Spans:
    """Rows of a JSON array whose "[" is at byte `start`.

    The file is decoded as Latin-1, so that positions in the text equal those in the file: JSON syntax
    is ASCII, and no byte of another UTF-8 character is. Raises DataError, with the row's number and
    position, for a row that is not an object and for broken JSON.
    """
    spans = array("q")
    for first, last in _Scan(stream, start + 1, path).rows():
        spans.extend((first, last))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


class _Scan:
    """A window of text that moves along the file. `base`: file position of its first character."""

    def __init__(self, stream: BinaryIO, start: int, path: Path) -> None:
        self.stream, self.path = stream, path
        self.base, self.place, self.text = start, 0, ""
        self.ended = False
        self.count = 0
        stream.seek(start)

    def rows(self) -> Iterator[tuple[int, int]]:
        while True:
            char = self._next()
            if char == "]" and not self.count:
                break
            if char != "{":
                raise self._error("a row must be an object {...}", self.place)
            end = self._object()
            yield self.base + self.place, self.base + end
            self.count += 1
            self.place = end
            char = self._next()
            if char == "]":
                break
            if char != ",":
                raise self._error('expected "," or "]" after a row', self.place)
            self.place += 1
        self.place += 1
        if self._next():
            raise self._error("text after the end of the list", self.place)

    def _next(self) -> str:
        """The next non-space character, at `place`; empty at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.place)
            assert match is not None
            self.place = match.end()
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._read_on()

    def _object(self) -> int:
        """The end, in the window, of the object that begins at `place`."""
        while True:
            try:
                return _DECODE(self.text, self.place)[1]
            except json.JSONDecodeError as error:
                truncated = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self.text) - _NEAR_END
                )
                if self.ended or not truncated:
                    raise self._error(error.msg, error.pos) from None
                if len(self.text) - self.place > LARGEST_ROW:
                    raise self._error(
                        f"a row is larger than {LARGEST_ROW >> 20} MB", self.place
                    ) from None
                self._read_on()
            except RecursionError:
                raise self._error("nested too deeply", self.place) from None

    def _read_on(self) -> None:
        """Read another window, or as much as the incomplete row, so that no row is scanned often."""
        rest = self.text[self.place :]
        self.base += self.place
        self.place = 0
        chunk = self.stream.read(max(WINDOW, len(rest)))
        self.ended = not chunk
        self.text = rest + chunk.decode("latin-1")

    def _error(self, what: str, place: int) -> DataError:
        return DataError(f"{self.path}: row {self.count + 1}: {what}, at byte {self.base + place}")
