"""Checkpoints are complete or ignored: processes killed at every system call, full disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import CheckpointError
from vip_llava.training.resume.checkpoint_folder import (
    MARKER,
    latest_checkpoint,
    new_checkpoint,
    prune,
    why_incomplete,
)

OPERATIONS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


class Disk:
    """Within `with`, counts the system calls that change the disk.

    `before(number, name)` runs before each call. A write is split in two, with a point between.
    """

    def __init__(self, before: Callable[[int, str], None] = lambda number, name: None) -> None:
        self.before = before
        self.names: list[str] = []
        self.files: list[str] = []  # created or renamed, in order

    def count(self, name: str) -> None:
        self.names.append(name)
        self.before(len(self.names), name)

    def __enter__(self) -> Disk:
        self.patch = pytest.MonkeyPatch()
        for name in OPERATIONS:
            self.patch.setattr(os, name, self.counted(name, getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def write(file: int, data: memoryview) -> int:
            self.count("write")
            done: int = call(file, data[: (len(data) + 1) // 2])
            self.count("half written")
            return done

        def other(*args: Any, **kwargs: Any) -> Any:
            self.count(name)
            if name == "open" and args[1] & os.O_CREAT:
                self.files.append(Path(args[0]).name)
            elif name == "rename":
                self.files.append("rename")
            return call(*args, **kwargs)

        return write if name == "write" else other


def content(step: int) -> dict[str, bytes]:
    return {"weights": b"w%d" % step * 500, "state.json": b'{"step": %d}' % step, "empty": b""}


def save(run: Path, step: int) -> None:
    with new_checkpoint(run, step) as new:
        for name, data in content(step).items():
            new.write(name, [data[:100], data[100:]])


def read(folder: Path) -> tuple[int, dict[str, bytes]]:
    step = json.loads((folder / MARKER).read_text())["step"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}
    return step, files


def save_and_prune(run: Path) -> None:
    """Replace the checkpoint of a step, then keep two."""
    save(run, 3)
    prune(run, 2)


def prepared(run: Path) -> Path:
    for step in (1, 2, 3):
        save(run, step)
    return run


def test_written_listed_and_found(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
    prepared(tmp_path)
    last = latest_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-3"
    assert read(last) == (3, content(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{n}" for n in (1, 2, 3)
    ]


def test_the_marker_is_written_last(tmp_path: Path) -> None:
    with Disk() as disk:
        save(tmp_path, 1)
    assert disk.files == [*content(1), MARKER, "rename"]


def test_every_file_is_synced_before_the_marker(tmp_path: Path) -> None:
    with Disk() as disk:
        save(tmp_path, 1)
    writes = [index for index, name in enumerate(disk.names) if name == "write"]
    for index in writes:
        assert "fsync" in disk.names[index:]
    marker = max(writes)
    assert disk.names[:marker].count("fsync") >= len(content(1))
    assert "fsync" in disk.names[disk.names.index("rename") :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MARKER).unlink(), f"{MARKER} is missing"),
        (lambda folder: (folder / MARKER).write_text("{"), "can't be read"),
        (lambda folder: (folder / MARKER).write_text("[]"), "can't be read"),
        (lambda folder: (folder / MARKER).write_text('{"format": 9}'), "format 9"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_bytes(b"w3"), "has 2 bytes"),
        (lambda folder: (folder / "weights").write_bytes(b"x" * 1000), "the checksum of weights"),
    ],
)
def test_a_damaged_checkpoint_is_ignored(
    tmp_path: Path, damage: Callable[[Path], Any], reason: str
) -> None:
    prepared(tmp_path)
    damage(tmp_path / "checkpoint-3")
    assert reason in str(why_incomplete(tmp_path / "checkpoint-3"))
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_files_of_other_libraries_are_listed(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path, 5) as new:
        new.write("ours", [b"1"])
        (new.folder / "deep").mkdir()
        (new.folder / "deep" / "theirs").write_bytes(b"2")
        new.add_existing_files()
    files = json.loads((tmp_path / "checkpoint-5" / MARKER).read_text())["files"]
    assert sorted(files) == ["deep/theirs", "ours"]
    (tmp_path / "checkpoint-5" / "deep" / "theirs").write_bytes(b"3")
    assert latest_checkpoint(tmp_path) is None


def test_an_error_in_the_block_removes_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(ZeroDivisionError), new_checkpoint(tmp_path, 2) as new:
        new.write("half", [b"1"])
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# --- Killed processes ---------------------------------------------------------------------------


def kill_points(run: Path) -> int:
    prepared(run)
    with Disk() as disk:
        save_and_prune(run)
    return len(disk.names)


def killed_at(number: int, run: Path) -> None:
    """Save and prune, in a process of its own that is killed at a system call."""

    def kill(call: int, name: str) -> None:
        if call == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with Disk(kill):
        save_and_prune(run)


def check_after_a_kill(run: Path) -> None:
    last = latest_checkpoint(run)
    assert last is not None
    step, files = read(last)
    assert (step, files) == (3, content(3))  # the old or the new one, never a mixture
    # The next run continues from it and cleans up.
    save(run, 4)
    prune(run, 2)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    assert all(why_incomplete(folder) is None for folder in run.iterdir())


def test_killed_at_every_system_call(tmp_path: Path) -> None:
    points = kill_points(tmp_path / "count")
    assert points > 40
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(points)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["-9"] * points
    for number in range(1, points + 1):
        check_after_a_kill(tmp_path / f"killed-{number}")


def test_the_first_checkpoint_of_a_run_that_fails(tmp_path: Path) -> None:
    """Without an earlier checkpoint: either none is found or the complete new one."""
    with Disk() as disk:
        save(tmp_path / "count", 1)
    found = []
    for number in range(1, len(disk.names) + 1):
        run = tmp_path / f"first-{number}"

        def fail(call: int, name: str, number: int = number) -> None:
            if call >= number:  # removing the files fails as well
                raise OSError(errno.EIO, "gone")

        with pytest.raises(CheckpointError), Disk(fail):
            save(run, 1)
        last = latest_checkpoint(run)
        found.append(last is not None)
        if last is not None:
            assert read(last) == (1, content(1))
    assert found == sorted(found)  # from some call on it is there
    assert not found[0]
    assert found[-1]


# --- Full disks ---------------------------------------------------------------------------------


def test_a_full_disk_at_every_write(tmp_path: Path) -> None:
    prepared(tmp_path / "count")
    with Disk() as disk:
        save(tmp_path / "count", 4)
    for number in range(1, disk.names.count("write") + 1):
        run, writes = prepared(tmp_path / f"full-{number}"), [0]

        def fill(call: int, name: str, number: int = number, writes: list[int] = writes) -> None:
            writes[0] += name == "write"
            if writes[0] >= number and name == "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with (
            pytest.raises(CheckpointError, match=r"No space left.*complete checkpoint is .*-3"),
            Disk(fill),
        ):
            save(run, 4)
        assert latest_checkpoint(run) == run / "checkpoint-3"
        assert not list(run.glob("checkpoint-4*"))  # its space is free again


def test_a_file_size_limit(tmp_path: Path) -> None:
    save(tmp_path, 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match=r"File too large.*checkpoint-1"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
            with new_checkpoint(tmp_path, 2) as new:
                new.write("weights", [b"w" * (1 << 17)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usual = os.open

    def full(path: Path, flags: int, *mode: int) -> int:
        file = usual(path, flags, *mode)
        if not flags & os.O_CREAT:
            return file
        os.close(file)
        return usual("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# --- Pruning ------------------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 100, 20, 7):
        save(tmp_path, step)
    assert [path.name for path in prune(tmp_path, 2)] == ["checkpoint-7", "checkpoint-5"]
    assert prune(tmp_path, 2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-20"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_only_complete_checkpoint_is_kept(tmp_path: Path, keep: int) -> None:
    prepared(tmp_path)
    (tmp_path / "checkpoint-3" / "weights").unlink()
    (tmp_path / "checkpoint-2" / MARKER).unlink()
    prune(tmp_path, keep)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert (tmp_path / "checkpoint-3").exists()  # kept for inspection


def test_other_folders_are_kept(tmp_path: Path) -> None:
    prepared(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    prune(tmp_path, 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-3", "checkpoint-old", "notes"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="at least one"):
        prune(tmp_path, 0)


def test_a_failed_removal_loses_nothing(tmp_path: Path) -> None:
    prepared(tmp_path)

    def fail(call: int, name: str) -> None:
        if name == "unlink" and call > 4:
            raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"), Disk(fail):
        prune(tmp_path, 1)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert [path.name for path in prune(tmp_path, 1)][:1] == ["checkpoint-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


if __name__ == "__main__":  # a process of test_killed_at_every_system_call
    for point in range(1, int(sys.argv[2]) + 1):
        target = prepared(Path(sys.argv[1]) / f"killed-{point}")
        child = os.fork()
        if child == 0:
            killed_at(point, target)
            os._exit(0)
        print(-os.WTERMSIG(os.waitpid(child, 0)[1]))
