"""Count bad rows, log them, and stop past a limit.

A bad row is never replaced by another one. This module does not know what makes a row bad.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from vip_llava.errors import DataError

__all__ = ["Failures"]

_SHOWN = 5
_NUMBERS = re.compile(r"'[^']*'|\d+(?:\.\d+)?")


class Failures:
    """Counts bad rows and raises past a limit.

    Args:
        limit: a number of rows that may fail (0: none), or a fraction of the rows seen so far, over
            0 and below 1, which always allows one row.
        folder: of `failures.jsonl`, to which each bad row appends an object {"where", "id",
            "reason"}; None writes no file.
    """

    def __init__(self, limit: int | float, folder: Path | None = None) -> None:
        if isinstance(limit, bool) or not (
            limit >= 0 if isinstance(limit, int) else 0 <= limit < 1
        ):
            raise DataError(
                "the limit of failures must be a whole number of rows or a fraction below 1, "
                f"not {limit!r}"
            )
        self.limit = limit
        self.count = 0
        self.rows = 0
        self._file = None if folder is None else folder / "failures.jsonl"
        self._kinds: Counter[str] = Counter()
        self._first: list[dict[str, str]] = []

    @property
    def allowed(self) -> int:
        """The number of rows seen so far that may fail."""
        if isinstance(self.limit, int) or self.limit == 0:
            return int(self.limit)
        return max(1, int(self.limit * self.rows))

    def seen(self, rows: int = 1) -> None:
        """Count rows that were tried, good and bad."""
        self.rows += rows

    def add(self, where: str, id: str, reason: str) -> None:  # the field's name
        """Count a bad row, which `seen` must count too. Raises DataError past the limit."""
        self.count += 1
        entry = {"where": where, "id": id, "reason": reason}
        self._kinds[_NUMBERS.sub("…", reason)] += 1
        if len(self._first) < _SHOWN:
            self._first.append(entry)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if self.count > self.allowed:
            raise DataError(self._summary())

    def report(self) -> dict[str, Any]:
        """The counts, the limit, how often each kind of reason occurred, and the first bad rows."""
        return {
            "rows": self.rows,
            "failed": self.count,
            "limit": self.limit,
            "reasons": dict(self._kinds.most_common()),
            "first": [dict(entry) for entry in self._first],
        }

    def restore(self, report: dict[str, Any]) -> None:
        """Continue from a `report` when a run is resumed."""
        self.rows, self.count = int(report["rows"]), int(report["failed"])
        self._kinds = Counter(report["reasons"])
        self._first = [dict(entry) for entry in report["first"]]

    def _summary(self) -> str:
        limit = self.limit
        most = f"{limit} rows" if isinstance(limit, int) else f"{limit:.3g} of the rows seen"
        lines = [f"{self.count} of {self.rows} rows are bad, and the limit is {most}; first:"]
        lines += [f"  {each['where']} ({each['id']!r}): {each['reason']}" for each in self._first]
        if self._file is not None:
            lines.append(f"{self._file} lists all of them")
        return "\n".join(lines)
