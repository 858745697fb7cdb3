"""Checkpoint folders that exist whole or not at all.

A checkpoint is written into a temporary folder; each file is synced to the disk, then a marker that
lists every file with its size and checksum, and only then the folder gets its name. What has no
marker, or differs from it, does not count. All effects on the disk go through `Disk`, so that tests
can end a process, or fill the disk, at any of them.

It knows no tensors and no trainer: a file is a name and pieces of bytes. Only one process may write
into a run's folder at a time.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vip_llava.errors import CheckpointError

__all__ = ["MARKER", "Disk", "NewCheckpoint", "last_complete", "new_checkpoint", "problem", "prune"]

MARKER = "complete.json"
FORMAT = 1
_UNFINISHED, _REPLACED = ".unfinished", ".replaced"
_NAME = re.compile(rf"checkpoint-(\d+)({re.escape(_UNFINISHED)}|{re.escape(_REPLACED)})?")
_BLOCK = 1 << 22

Piece = bytes | bytearray | memoryview


class Disk:
    """Everything that saving and pruning do to a disk, one small step each."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> int:
        """Open a new file for writing; returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, file: int, piece: memoryview) -> int:
        """Write what the system takes of a piece; returns the number of bytes."""
        return os.write(file, piece)

    def sync_file(self, file: int) -> None:
        os.fsync(file)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable (where the system can do that at all)."""
        if os.name == "nt":
            return
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()


class NewCheckpoint:
    """A checkpoint being written; `new_checkpoint` makes and finishes it."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder
        self._disk = disk
        self._files: dict[str, dict[str, int]] = {}

    def write(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a file of these pieces, and its bytes to the disk before returning."""
        file = self._disk.create(self.folder / name)
        size = checksum = 0
        try:
            for piece in pieces:
                view = memoryview(piece).cast("B")
                checksum = zlib.crc32(view, checksum)
                size += len(view)
                while len(view):
                    view = view[self._disk.write(file, view) :]
            self._disk.sync_file(file)
        finally:
            os.close(file)
        self._files[name] = {"size": size, "crc32": checksum}

    def write_json(self, name: str, value: object) -> None:
        """Write a value as JSON."""
        self.write(name, [json.dumps(value, indent=1).encode()])

    def adopt(self) -> None:
        """Take in the files that something else wrote into the folder, as they are now."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in self._files:
                file = os.open(path, os.O_RDWR)
                try:
                    self._disk.sync_file(file)
                finally:
                    os.close(file)
                self._files[name] = {"size": path.stat().st_size, "crc32": _checksum(path)}
            elif path.is_dir():
                self._disk.sync_folder(path)

    def finish(self, step: int) -> None:
        """Write the marker; from here on the folder counts."""
        self._disk.sync_folder(self.folder)
        files, marker = dict(self._files), {"format": FORMAT, "step": step}
        self.write_json(MARKER, {**marker, "files": files})
        self._disk.sync_folder(self.folder)


@contextmanager
def new_checkpoint(run: Path, step: int, disk: Disk | None = None) -> Iterator[NewCheckpoint]:
    """Write the checkpoint of a step into the folder `run`; it appears as `checkpoint-STEP`.

    A whole one of the same step stays until the new one is whole. Whatever fails inside leaves no
    trace but the error.

    Raises:
        CheckpointError: the disk refused (full, not writable); says where and what is still there.
    """
    disk = disk or Disk()
    final = run / f"checkpoint-{step}"
    new = NewCheckpoint(Path(f"{final}{_UNFINISHED}"), disk)
    try:
        disk.make_folder(run)
        _remove(new.folder, disk)
        disk.make_folder(new.folder)
        yield new
        new.finish(step)
        _put_in_place(new.folder, final, disk)
    except OSError as error:
        with suppress(OSError):
            _remove(new.folder, disk)
        last = last_complete(run, deep=False)
        raise CheckpointError(
            f"{final} could not be written: {error}; nothing of it was kept. "
            f"The last whole checkpoint is {last.name if last else 'none'}"
        ) from error
    except BaseException:
        with suppress(OSError):
            _remove(new.folder, disk)
        raise


def _put_in_place(new: Path, final: Path, disk: Disk) -> None:
    old = Path(f"{final}{_REPLACED}")
    if final.exists():
        _remove(old, disk)
        # Between the two renames both folders carry their marker: either one is found.
        disk.rename(final, old)
    disk.rename(new, final)
    disk.sync_folder(final.parent)
    _remove(old, disk)


def _remove(folder: Path, disk: Disk) -> None:
    """Remove a folder if it is there, its marker first: half a removal is no checkpoint."""
    if not folder.exists():
        return
    marker = folder / MARKER
    if marker.exists():
        disk.remove_file(marker)
        disk.sync_folder(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            disk.remove_folder(path)
        else:
            disk.remove_file(path)
    disk.remove_folder(folder)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def problem(folder: Path, *, deep: bool = True) -> str | None:
    """Why a folder is not a whole checkpoint, or None for a whole one.

    Compares names and sizes with the marker's, and with `deep` every byte with its checksum.
    """
    try:
        marker: Any = json.loads((folder / MARKER).read_text("utf-8"))
        if marker["format"] != FORMAT:
            return f"{MARKER} is of format {marker['format']}, expected {FORMAT}"
        files, _ = dict(marker["files"]), int(marker["step"])
        for name, listed in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != listed["size"]:
                return f"{name} has {size} bytes, {MARKER} says {listed['size']}"
            if deep and _checksum(path) != listed["crc32"]:
                return f"the bytes of {name} differ from what was written"
    except FileNotFoundError:
        return f"{MARKER} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MARKER} can't be read: {type(error).__name__}: {error}"
    return None


def last_complete(run: Path, *, deep: bool = True) -> Path | None:
    """The whole checkpoint with the highest step in a run's folder, or None.

    A folder that a process left under its temporary name counts if its marker is there.
    """
    for _, folder in _candidates(run):
        if problem(folder, deep=deep) is None:
            return folder
    return None


def _candidates(run: Path) -> list[tuple[int, Path]]:
    """Folders with a checkpoint's name: highest step first, then the final name, then unfinished."""
    if not run.is_dir():
        return []
    found = []
    for path in run.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            rank = [None, _UNFINISHED, _REPLACED].index(match[2])
            found.append((-int(match[1]), rank, path))
    return [(-step, path) for step, _, path in sorted(found)]


def prune(
    run: Path, keep: int, *, protect: Collection[Path] = (), disk: Disk | None = None
) -> list[Path]:
    """Remove all whole checkpoints but the newest `keep` and those in `protect`; returns them.

    Only whole ones count as kept, so the only good one is never removed. Remains of a save that
    was cut off go too. A folder that merely differs from its marker stays: it is for a person to
    look at.
    """
    if keep < 1:
        raise CheckpointError(f"keep {keep}: at least one checkpoint has to stay")
    disk = disk or Disk()
    removed: list[Path] = []
    kept: set[int] = set()
    safe = {path.resolve() for path in protect}
    for step, folder in _candidates(run):
        final = run / f"checkpoint-{step}"
        whole = problem(folder, deep=False) is None
        if whole and step not in kept and len(kept) < keep:
            kept.add(step)
            if folder != final and not final.exists():
                disk.rename(folder, final)
        elif folder.resolve() not in safe and (whole or folder != final):
            if folder == final:  # half a removal shall look like what it is
                old = Path(f"{final}{_REPLACED}")
                _remove(old, disk)
                disk.rename(folder, old)
                _remove(old, disk)
            else:
                _remove(folder, disk)
            removed.append(folder)
    return removed
