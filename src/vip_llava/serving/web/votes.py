"""Votes on answers, written to a file of the operator's if one was named, and nowhere else.

A line is a JSON object: time, vote, model, question, marks, answer, parameters, and the image's
hash. The image, the visitor and the visitor's address are not part of it.
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
    """The file, opened for each line, so that it may be moved away at any time."""

    def __init__(self, path: Path) -> None:
        """Raises OSError now where the file can't be written, and not at the first vote."""
        self._path = path
        self._lock = threading.Lock()
        with path.open("a", encoding="utf-8"):
            pass

    def write(self, vote: str, about: Mapping[str, Any]) -> None:
        """Add a line. RequestError for a vote of another kind."""
        if vote not in VOTES:
            raise RequestError(f"a vote is one of {', '.join(VOTES)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "vote": vote, **about}, ensure_ascii=False)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
