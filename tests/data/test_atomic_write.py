from __future__ import annotations

from pathlib import Path

import pytest

from vip_llava.data.atomic_write import atomic_writer
from vip_llava.errors import DataError


def test_a_file_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_writer(path) as stream:
        stream.write("å\n")
        assert not path.exists()
    assert path.read_bytes() == "å\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_target_unchanged(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(error), atomic_writer(path) as stream:
        stream.write("half")
        raise error
    assert path.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_file_has_the_usual_mode(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    with atomic_writer(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").stat().st_mode == usual.stat().st_mode


def test_the_folder_must_exist_and_is_not_a_target(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"), atomic_writer(tmp_path / "no" / "a"):
        pass
    with pytest.raises(DataError, match="a folder, not a file"), atomic_writer(tmp_path):
        pass
