"""Files that grow line by line, and whose last line may have been cut when a program was stopped."""

from __future__ import annotations

from pathlib import Path

__all__ = ["whole_lines"]


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, none if there is no file. A last one that was cut is dropped, in the
    file too, so that the next line begins where it should.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return content[:whole].splitlines()
