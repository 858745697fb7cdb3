"""Where the rows of a JSON array or of a JSON Lines file lie: byte offsets, found in one pass.

Only a window of the file is in memory at a time. It deliberately does not know what a row means.
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
#: A cut text breaks at its very end; only a string may begin far in front of that.
_NEAR_END = 16


def line_spans(stream: BinaryIO, start: int) -> Spans:
    """Rows of a JSON Lines file from byte `start` on; blank lines are none."""
    spans = array("q")
    stream.seek(start)
    place = start
    for line in stream:
        text = line.strip()
        if text:
            spans.extend((place, place + len(line)))
        place += len(line)
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def array_spans(stream: BinaryIO, start: int, path: Path) -> Spans:
    """Rows of a JSON array whose "[" is at byte `start`.

    The file is read as Latin-1, so that places in the text are places in the file: all that JSON is
    made of is ASCII, and no byte of another UTF-8 character looks like it. Raises DataError for a
    row that is no object and for broken JSON, with the row's number and place.
    """
    spans = array("q")
    for first, last in _Scan(stream, start + 1, path).rows():
        spans.extend((first, last))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


class _Scan:
    """A window of text that moves along the file. `base`: the file place of its first character."""

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
                raise self._error('expected "," or "]" behind a row', self.place)
            self.place += 1
        self.place += 1
        if self._next():
            raise self._error("text behind the end of the list", self.place)

    def _next(self) -> str:
        """The next character that is no space, at `place`; empty at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.place)
            assert found is not None
            self.place = found.end()
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._more()

    def _object(self) -> int:
        """Where the object that begins at `place` ends, in the window."""
        while True:
            try:
                return _DECODE(self.text, self.place)[1]
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self.text) - _NEAR_END
                )
                if self.ended or not cut:
                    raise self._error(error.msg, error.pos) from None
                if len(self.text) - self.place > LARGEST_ROW:
                    raise self._error(
                        f"a row is larger than {LARGEST_ROW >> 20} MB", self.place
                    ) from None
                self._more()
            except RecursionError:
                raise self._error("nested too deeply", self.place) from None

    def _more(self) -> None:
        """Another window's worth, twice what is left where that is more: no row is read often."""
        rest = self.text[self.place :]
        self.base += self.place
        self.place = 0
        chunk = self.stream.read(max(WINDOW, len(rest)))
        self.ended = not chunk
        self.text = rest + chunk.decode("latin-1")

    def _error(self, what: str, place: int) -> DataError:
        return DataError(f"{self.path}: row {self.count + 1}: {what}, at byte {self.base + place}")
