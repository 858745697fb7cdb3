"""Files that appear whole or not at all.

Text goes to a temporary file beside the target, which takes the target's name only when everything
is written and on the disk. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vip_llava.errors import DataError

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """An open UTF-8 text file that becomes `path` when the block ends without an error.

    After an error the target is as it was before. Raises DataError if its folder does not exist.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise DataError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp gives a private file; the target gets the rights that any new file has.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
