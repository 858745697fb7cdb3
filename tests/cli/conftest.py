"""A photo to work on, and the program run in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Ran:
    """How a run of the program ended."""

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
        import io
        import sys

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
