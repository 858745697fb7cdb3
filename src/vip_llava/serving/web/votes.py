"""`VoteFile`: votes on answers, appended to a file that the operator names.

A line is a JSON object: time, vote, model, question, regions, answer, seed, and the image's hash.
It contains neither the image nor anything about the visitor.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vip_llava.errors import RequestError

__all__ = ["VOTES", "VoteFile"]

VOTES = ("up", "down", "flag")


class VoteFile:
    """The file, opened for each vote, so that it can be rotated at any time."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file can't be written, before the first vote."""
        self._path = path
        self._lock = threading.Lock()
        with path.open("a", encoding="utf-8"):
            pass

    def write(self, vote: str, record: Mapping[str, Any]) -> None:
        """Append a vote. RequestError if it is not one of `VOTES`."""
        if vote not in VOTES:
            raise RequestError(f"a vote must be one of {', '.join(VOTES)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "vote": vote, **record}, ensure_ascii=False)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
