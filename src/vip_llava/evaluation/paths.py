"""Finds the files of a benchmark's data. It does not know what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vip_llava.errors import DataError

__all__ = ["find_data_file", "path_inside"]


def find_data_file(data: Path, patterns: Sequence[str], name: str) -> Path:
    """The file in a folder that matches the first pattern with a match; a file is returned as is.

    name: the benchmark, for errors. Raises DataError if no file matches, or several do.
    """
    if data.is_file():
        return data
    for pattern in patterns:
        matches = sorted(path for path in data.glob(pattern) if path.is_file())
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(path.name for path in matches[:5])
            raise DataError(f"{data} holds {names}; give --data the file that {name} is to read")
    raise DataError(f"{data} holds no {' or '.join(patterns)}, which {name} needs")


def path_inside(folder: Path, name: str) -> Path:
    """The path of an image in a folder. Raises DataError for a name that leads out of it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"the image name {name!r} leads out of the image folder")
    return folder / parts
