"""Write a text file atomically: it appears complete or not at all.

The text goes to a temporary file in the target's folder, which replaces the target after it was
flushed to the disk. The module does not know what is written.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vip_llava.errors import DataError

__all__ = ["atomic_writer"]


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """An open UTF-8 text file that replaces `path` when the block ends without an error.

    After an error the target is unchanged. Raises DataError if its folder does not exist.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise DataError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes a private file; give the target the mode that any new file has.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
