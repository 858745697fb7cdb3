"""Weight files: their mode, and errors about files that cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.safetensors_files import load_tensors, save_tensors

READ = """
import os, sys
from pathlib import Path
from vip_llava.errors import CheckpointError
from vip_llava.models.checkpoint_files import read_json, read_tensors
if os.geteuid() == 0:
    os.seteuid(65534)
for name in sys.argv[1:]:
    try:
        read_json(Path(name)) if name.endswith(".json") else read_tensors([Path(name)])
    except CheckpointError as error:
        print(error)
    else:
        print("read")
"""


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_weight_file_has_the_mode_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(2)})
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    written = (tmp_path / "weights.safetensors").stat().st_mode
    assert written == (tmp_path / "other").stat().st_mode
    assert written & 0o777 == 0o666 & ~umask


def test_views_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    path = save_tensors(tmp_path / "a.safetensors", {"t": whole.t(), "row": whole[1]})
    found = load_tensors(path)
    assert torch.equal(found["t"], whole.t()) and torch.equal(found["row"], whole[1])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can access (pytest's are private)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_missing_read_permission_is_reported(open_folder: Path) -> None:
    save_tensors(open_folder / "a.safetensors", {"a": torch.zeros(2)})
    torch.save({"a": torch.zeros(2)}, open_folder / "a.bin")
    (open_folder / "config.json").write_text("{}")
    names = [str(open_folder / name) for name in ("a.safetensors", "a.bin", "config.json")]
    for name in names:
        Path(name).chmod(0)
    result = subprocess.run(
        [sys.executable, "-c", READ, *names], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, names, strict=True):
        assert line == f"{name}: permission denied; this user needs read access to the file"


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: No such file"):
        load_tensors(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        load_tensors(tmp_path / "damaged.safetensors")
