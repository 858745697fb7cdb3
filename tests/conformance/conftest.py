"""Where the recorded results of the original are: `VIP_LLAVA_GOLDEN`, or beside the repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def golden_folder() -> Path:
    """The folder of recorded results; it may not exist."""
    named = os.environ.get("VIP_LLAVA_GOLDEN")
    return Path(named) if named else REPOSITORY.parent / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = golden_folder()
    if not folder.is_dir():
        pytest.skip(f"no recorded results at {folder}: set VIP_LLAVA_GOLDEN to such a folder")
    return folder


@pytest.fixture(scope="session")
def family(golden: Path) -> Callable[[str], Path]:
    """`family("rendering")` is that family's folder, or the test is skipped with a reason."""

    def find(name: str) -> Path:
        folder = golden / name
        if not folder.is_dir():
            pytest.skip(f"the recorded results at {golden} have no family {name!r}")
        return folder

    return find
