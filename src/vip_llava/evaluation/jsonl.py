"""JSON-lines files that grow while a program runs, and may end in a truncated line."""

from __future__ import annotations

from pathlib import Path

__all__ = ["complete_lines"]


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file; none if the file does not exist.

    A last line without its newline is removed from the file, so that the next one is appended in
    the right place.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete != len(content):
        with path.open("r+b") as file:
            file.truncate(complete)
    return content[:complete].splitlines()
