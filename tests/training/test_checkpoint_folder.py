"""Checkpoints are whole or absent: killed at every step on the disk, full disks, pruning."""

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
    Disk,
    last_complete,
    new_checkpoint,
    problem,
    prune,
)

STEPS = ["make_folder", "create", "write", "sync_file", "sync_folder"]
STEPS += ["rename", "remove_file", "remove_folder"]


class CountingDisk(Disk):
    """Calls `meet(number, name)` before every step; a write is also met half way through."""

    def __init__(self, meet: Callable[[int, str], None]) -> None:
        self.steps, self.names = 0, []
        self.meet = meet

    def count(self, name: str) -> None:
        self.steps += 1
        self.names.append(name)
        self.meet(self.steps, name)

    def write(self, file: int, piece: memoryview) -> int:
        self.count("write")
        done = super().write(file, piece[: (len(piece) + 1) // 2])
        self.count("half written")
        return done


def counted(name: str) -> Any:
    def step(self: CountingDisk, *args: Any) -> Any:
        self.count(name)
        return getattr(Disk, name)(self, *args)

    return step


for _name in STEPS:
    if _name != "write":
        setattr(CountingDisk, _name, counted(_name))


def content(step: int) -> dict[str, bytes]:
    return {"weights": b"w%d" % step * 500, "state.json": b'{"step": %d}' % step, "empty": b""}


def save(run: Path, step: int, disk: Disk | None = None) -> None:
    with new_checkpoint(run, step, disk) as new:
        for name, data in content(step).items():
            new.write(name, [data[:100], data[100:]])


def read(folder: Path) -> tuple[int, dict[str, bytes]]:
    step = json.loads((folder / MARKER).read_text())["step"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}
    return step, files


def save_and_prune(run: Path, disk: Disk | None = None) -> None:
    """What a trainer does at a step that was saved before: replace, then keep two."""
    save(run, 3, disk)
    prune(run, 2, disk=disk)


def prepared(run: Path) -> Path:
    for step in (1, 2, 3):
        save(run, step)
    return run


def test_written_listed_and_found(tmp_path: Path) -> None:
    assert last_complete(tmp_path) is None
    assert last_complete(tmp_path / "absent") is None
    prepared(tmp_path)
    last = last_complete(tmp_path)
    assert last == tmp_path / "checkpoint-3"
    assert read(last) == (3, content(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{n}" for n in (1, 2, 3)
    ]


def test_the_marker_is_the_last_thing_written(tmp_path: Path) -> None:
    written: list[str] = []

    class Order(Disk):
        def create(self, path: Path) -> int:
            written.append(path.name)
            return super().create(path)

        def rename(self, old: Path, new: Path) -> None:
            written.append("rename")
            super().rename(old, new)

    save(tmp_path, 1, Order())
    assert written == [*content(1), MARKER, "rename"]


def test_every_file_is_synced_before_the_marker(tmp_path: Path) -> None:
    disk = CountingDisk(lambda number, name: None)
    save(tmp_path, 1, disk)
    creations = [index for index, name in enumerate(disk.names) if name == "create"]
    for start, end in zip(creations, [*creations[1:], len(disk.names)], strict=True):
        assert "sync_file" in disk.names[start:end]
    assert "sync_folder" in disk.names[disk.names.index("rename") :]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / MARKER).unlink(), f"{MARKER} is missing"),
        (lambda folder: (folder / MARKER).write_text("{"), "can't be read"),
        (lambda folder: (folder / MARKER).write_text("[]"), "can't be read"),
        (lambda folder: (folder / MARKER).write_text('{"format": 9}'), "format 9"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_bytes(b"w3"), "has 2 bytes"),
        (lambda folder: (folder / "weights").write_bytes(b"x" * 1000), "differ"),
    ],
)
def test_a_harmed_one_is_passed_over(
    tmp_path: Path, harm: Callable[[Path], Any], reason: str
) -> None:
    prepared(tmp_path)
    harm(tmp_path / "checkpoint-3")
    assert reason in str(problem(tmp_path / "checkpoint-3"))
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"


def test_files_of_others_are_taken_in(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path, 5) as new:
        new.write("ours", [b"1"])
        (new.folder / "deep").mkdir()
        (new.folder / "deep" / "theirs").write_bytes(b"2")
        new.adopt()
    files = json.loads((tmp_path / "checkpoint-5" / MARKER).read_text())["files"]
    assert sorted(files) == ["deep/theirs", "ours"]
    (tmp_path / "checkpoint-5" / "deep" / "theirs").write_bytes(b"3")
    assert last_complete(tmp_path) is None


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(ZeroDivisionError), new_checkpoint(tmp_path, 2) as new:
        new.write("half", [b"1"])
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# --- kill -9 (test 39) --------------------------------------------------------------------------


def kill_points(run: Path) -> int:
    disk = CountingDisk(lambda number, name: None)
    save_and_prune(prepared(run), disk)
    return disk.steps


def killed_at(number: int, run: Path) -> None:
    """In a process of its own: end it, as the system would, at that step of saving and pruning."""

    def meet(step: int, name: str) -> None:
        if step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    save_and_prune(run, CountingDisk(meet))


def check_after_a_kill(run: Path) -> None:
    last = last_complete(run)
    assert last is not None
    step, files = read(last)
    assert (step, files) == (3, content(3))  # the older one or the newer one: never a mixture
    # The next run carries on from here, and cleans up.
    save(run, 4)
    prune(run, 2)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    assert all(problem(folder) is None for folder in run.iterdir())


def test_killed_at_every_step_on_the_disk(tmp_path: Path) -> None:
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


def test_the_first_checkpoint_of_a_run_killed(tmp_path: Path) -> None:
    """Nothing to fall back to: then either nothing is found or the whole new one."""
    disk = CountingDisk(lambda number, name: None)
    save(tmp_path / "count", 1, disk)
    found = []
    for number in range(1, disk.steps + 1):
        run = tmp_path / f"first-{number}"

        def meet(step: int, name: str, number: int = number) -> None:
            if step >= number:  # nothing works any more, the cleaning up neither
                raise OSError(errno.EIO, "gone")

        with pytest.raises(CheckpointError):
            save(run, 1, CountingDisk(meet))
        last = last_complete(run)
        found.append(last is not None)
        if last is not None:
            assert read(last) == (1, content(1))
    assert found == sorted(found)  # from some point on it is there, and stays
    assert not found[0]
    assert found[-1]


# --- full disks (test 40) -----------------------------------------------------------------------


def test_a_full_disk_at_every_write(tmp_path: Path) -> None:
    disk = CountingDisk(lambda number, name: None)
    save(prepared(tmp_path / "count"), 4, disk)
    for number in range(1, disk.names.count("write") + 1):
        run, writes = prepared(tmp_path / f"full-{number}"), [0]

        def meet(step: int, name: str, number: int = number, writes: list[int] = writes) -> None:
            writes[0] += name == "write"
            if writes[0] >= number and name == "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(CheckpointError, match=r"No space left.*whole checkpoint is .*-3"):
            save(run, 4, CountingDisk(meet))
        assert last_complete(run) == run / "checkpoint-3"
        assert not list(run.glob("checkpoint-4*"))  # its space is free again


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
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
def test_a_device_that_is_full(tmp_path: Path) -> None:
    save(tmp_path, 1)

    class Full(Disk):
        def create(self, path: Path) -> int:
            super().create(path)
            return os.open("/dev/full", os.O_WRONLY)

    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path, 2, Full())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# --- keep k (test 42) ---------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 100, 20, 7):
        save(tmp_path, step)
    assert [path.name for path in prune(tmp_path, 2)] == ["checkpoint-7", "checkpoint-5"]
    assert prune(tmp_path, 2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-20"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_only_good_one_stays(tmp_path: Path, keep: int) -> None:
    prepared(tmp_path)
    (tmp_path / "checkpoint-3" / "weights").unlink()
    (tmp_path / "checkpoint-2" / MARKER).unlink()
    prune(tmp_path, keep)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-1"
    assert (tmp_path / "checkpoint-3").exists()  # not ours to throw away


def test_protected_ones_and_strangers_stay(tmp_path: Path) -> None:
    prepared(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    prune(tmp_path, 1, protect=[tmp_path / "checkpoint-1"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-1", "checkpoint-3", "checkpoint-old", "notes"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="at least one"):
        prune(tmp_path, 0)


def test_a_failed_removal_loses_nothing(tmp_path: Path) -> None:
    prepared(tmp_path)

    def meet(step: int, name: str) -> None:
        if name == "remove_file" and step > 4:
            raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"):
        prune(tmp_path, 1, disk=CountingDisk(meet))
    assert last_complete(tmp_path) == tmp_path / "checkpoint-3"
    assert [path.name for path in prune(tmp_path, 1)][:1] == ["checkpoint-2.replaced"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


if __name__ == "__main__":  # the process of test_killed_at_every_step_on_the_disk
    for point in range(1, int(sys.argv[2]) + 1):
        target = prepared(Path(sys.argv[1]) / f"killed-{point}")
        child = os.fork()
        if child == 0:
            killed_at(point, target)
            os._exit(0)
        print(-os.WTERMSIG(os.waitpid(child, 0)[1]))
