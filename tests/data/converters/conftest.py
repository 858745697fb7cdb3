"""Small files in the published formats, and a fixture that converts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vip_llava.data.converters import CONVERTERS, ConversionReport, RawFiles, convert
from vip_llava.data.failures import Failures


@dataclass(frozen=True)
class Converted:
    """The rows of a conversion and its report."""

    rows: list[dict[str, Any]]
    report: ConversionReport

    @property
    def only(self) -> dict[str, Any]:
        assert len(self.rows) == 1, self.report
        return self.rows[0]


Converter = Callable[..., Converted]
Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("a.json", value)` gives the path; a list for `.jsonl` is one object a line, text as it is."""

    def put(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, str):
            path.write_text(value, encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(each) + "\n" for each in value), encoding="utf-8")
        else:
            path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return put


@pytest.fixture
def converter() -> Converter:
    """`converter("coco", path, ..., split=..., failures=2)` converts; 0 failures are allowed if not said."""

    def run(name: str, *files: Path, failures: float = 0, **options: Any) -> Converted:
        report = ConversionReport(Failures(failures))
        raw = RawFiles(files=files, **options)
        return Converted(list(convert(CONVERTERS[name], raw, report)), report)

    return run
