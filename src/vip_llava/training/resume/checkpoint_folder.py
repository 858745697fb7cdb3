"""Checkpoint folders that are either complete or ignored.

A checkpoint is written into a temporary folder. Each file is synced to disk, then a marker file
that lists every file with its size and checksum, and only then the folder is renamed. A folder
without a marker, or that differs from its marker, is not a checkpoint.

It does not know tensors or the trainer: a file is a name and chunks of bytes. Only one process may
write into a run's folder at a time.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vip_llava.errors import CheckpointError

__all__ = [
    "MARKER",
    "NewCheckpoint",
    "atomic_write",
    "latest_checkpoint",
    "new_checkpoint",
    "prune",
    "why_incomplete",
]

MARKER = "complete.json"
FORMAT = 1
_UNFINISHED = ".unfinished"
_NAME = re.compile(rf"checkpoint-(\d+)({re.escape(_UNFINISHED)})?")
_BLOCK = 1 << 22

Chunks = Iterable[bytes | bytearray | memoryview]


class NewCheckpoint:
    """A checkpoint being written; created and completed by `new_checkpoint`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, int]] = {}

    def write(self, name: str, chunks: Chunks) -> None:
        """Write a file of these chunks and sync it."""
        self._files[name] = _write_synced(self.folder / name, chunks)

    def write_json(self, name: str, value: object) -> None:
        """Write a value as JSON."""
        self.write(name, [json.dumps(value, indent=1).encode()])

    def add_existing_files(self) -> None:
        """Sync and list the files that another library has written into the folder."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in self._files:
                file = os.open(path, os.O_RDWR)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
                self._files[name] = {"size": path.stat().st_size, "crc32": _checksum(path)}
            elif path.is_dir():
                _sync_folder(path)

    def complete(self, step: int) -> None:
        """Write the marker, which makes the folder a checkpoint."""
        _sync_folder(self.folder)
        self.write_json(MARKER, {"format": FORMAT, "step": step, "files": dict(self._files)})
        _sync_folder(self.folder)


@contextmanager
def new_checkpoint(run: Path, step: int) -> Iterator[NewCheckpoint]:
    """Write the checkpoint of a step into the folder `run`; it appears as `checkpoint-STEP`.

    A complete checkpoint of the same step stays until the new one is complete. An error inside the
    block removes what was written and propagates.

    Raises:
        CheckpointError: the disk is full or not writable; names the last complete checkpoint.
    """
    final = run / f"checkpoint-{step}"
    new = NewCheckpoint(Path(f"{final}{_UNFINISHED}"))
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not final.exists() and why_incomplete(new.folder, deep=False) is None:
            new.folder.rename(final)  # the process ended before it could
        _remove(new.folder)
        new.folder.mkdir(parents=True, exist_ok=True)
        yield new
        new.complete(step)
        _remove(final)  # the new folder has its marker and counts from here on
        new.folder.rename(final)
        _sync_folder(run)
    except OSError as error:
        _discard_incomplete(new.folder)
        last = latest_checkpoint(run, deep=False)
        raise CheckpointError(
            f"{final} could not be written: {error}. "
            f"The last complete checkpoint is {last.name if last else 'none'}"
        ) from error
    except BaseException:
        _discard_incomplete(new.folder)
        raise


def atomic_write(path: Path, chunks: Chunks) -> None:
    """Write a file that appears under its name only when it is complete and synced."""
    unfinished = path.with_name(path.name + _UNFINISHED)
    _write_synced(unfinished, chunks)
    unfinished.rename(path)
    _sync_folder(path.parent)


def _write_synced(path: Path, chunks: Chunks) -> dict[str, int]:
    """Write and sync a file; returns its size and checksum."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    size = checksum = 0
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            checksum = zlib.crc32(view, checksum)
            size += len(view)
            while len(view):
                view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)
    return {"size": size, "crc32": checksum}


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable, on systems that can sync a folder."""
    if os.name == "nt":
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _discard_incomplete(folder: Path) -> None:
    with suppress(OSError):
        if why_incomplete(folder, deep=False) is not None:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder if it exists, its marker first, so that a partial removal is ignored."""
    if not folder.exists():
        return
    marker = folder / MARKER
    if marker.exists():
        marker.unlink()
        _sync_folder(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def why_incomplete(folder: Path, *, deep: bool = True) -> str | None:
    """Why a folder is not a complete checkpoint; None for a complete one.

    Compares names and sizes with those in the marker, and with `deep` also all checksums.
    """
    try:
        marker: Any = json.loads((folder / MARKER).read_text("utf-8"))
        if marker["format"] != FORMAT:
            return f"{MARKER} has format {marker['format']}, expected {FORMAT}"
        files, _ = dict(marker["files"]), int(marker["step"])
        for name, listed in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != listed["size"]:
                return f"{name} has {size} bytes, {MARKER} says {listed['size']}"
            if deep and _checksum(path) != listed["crc32"]:
                return f"the checksum of {name} differs from the one in {MARKER}"
    except FileNotFoundError:
        return f"{MARKER} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MARKER} can't be read: {type(error).__name__}: {error}"
    return None


def latest_checkpoint(run: Path, *, deep: bool = True) -> Path | None:
    """The complete checkpoint with the highest step in a run's folder, or None.

    A folder under a temporary name counts if it has its marker: the process ended before renaming.
    """
    for _, folder in _candidates(run):
        if why_incomplete(folder, deep=deep) is None:
            return folder
    return None


def _candidates(run: Path) -> list[tuple[int, Path]]:
    """Folders named like checkpoints: highest step first, final names before temporary ones."""
    if not run.is_dir():
        return []
    matches = [(path, _NAME.fullmatch(path.name)) for path in run.iterdir() if path.is_dir()]
    found = [(-int(match[1]), bool(match[2]), path) for path, match in matches if match]
    return [(-step, path) for step, _, path in sorted(found)]


def prune(run: Path, keep: int) -> list[Path]:
    """Remove all complete checkpoints but the newest `keep`; returns the removed folders.

    Only complete checkpoints count, so the last usable one is never removed. What an interrupted
    save or removal left is removed as well. A folder that differs from its marker is kept for
    inspection.
    """
    if keep < 1:
        raise CheckpointError(f"keep is {keep}: at least one checkpoint must be kept")
    removed: list[Path] = []
    kept: set[int] = set()
    for step, folder in _candidates(run):
        final = run / f"checkpoint-{step}"
        complete = why_incomplete(folder, deep=False) is None
        damaged = not complete and folder == final and (folder / MARKER).exists()
        if complete and step not in kept and len(kept) < keep:
            kept.add(step)
            if not final.exists():
                folder.rename(final)
        elif not damaged:
            _remove(folder)
            removed.append(folder)
    return removed
