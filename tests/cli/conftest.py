"""A photo, and the program run in this process or as a child process."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Ran:
    """Exit code and output of a run of the program."""

    code: int
    out: str
    err: str


Program = Callable[..., Ran]


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """`program("draw", ...)` runs vip-llava in this process; `stdin=` is what is piped in."""
    from vip_llava.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*argv: object, stdin: bytes = b"") -> Ran:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
            code = main([str(item) for item in argv])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A grey 80 x 60 PNG with some texture."""
    grey = np.tile(np.arange(80, dtype=np.uint8) + 90, (60, 1))
    path = tmp_path / "photo.png"
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(path)
    return path


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """The environment of a child process that runs this very package, with one torch thread."""
    import vip_llava

    source = str(Path(vip_llava.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([source, inherited] if inherited else [source])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def vip_llava(
    child_environment: dict[str, str],
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`vip_llava("draw", ..., stdin=b"")` runs `python -m vip_llava` as a child process."""

    def run(*argv: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "vip_llava", *map(str, argv)],
            input=stdin,
            capture_output=True,
            env=child_environment,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def assistant(tiny_model_folder: Path) -> Any:
    """The tiny model, loaded."""
    from vip_llava.assistant import load

    return load(tiny_model_folder)
