"""docs/data.md is correct: each kind of row has a section, loads, and gives marks and text."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from vip_llava.data.fields import DataRow
from vip_llava.data.records import KINDS, parse_row
from vip_llava.data.tasks import TASKS, arrange

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
TEXT = PAGE.read_text("utf-8")
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))
SIZE = (320, 240)


def example(kind: str) -> dict[str, Any]:
    found = re.findall(r"^```json\n(.*?)^```$", SECTIONS[kind], re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    value: dict[str, Any] = json.loads(found[0])
    return value


def test_every_kind_has_its_section() -> None:
    assert list(SECTIONS) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_a_kind_can_be_trained_on(kind: str) -> None:
    row = parse_row(example(kind), where=PAGE.name)
    assert row.kind == kind
    assert not row.model_extra
    marked = arrange(row, SIZE, random.Random(0))
    assert all(turn.text for turn in marked.turns)
    assert bool(marked.regions) == (kind != "conversation")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_named(kind: str) -> None:
    common = set(DataRow.model_fields)
    own = set(KINDS[kind].model_fields) - common
    shared = TEXT[: TEXT.index("## Kinds of rows")]
    for name in own:
        assert f'"{name}"' in SECTIONS[kind] or f"`{name}`" in SECTIONS[kind] + shared, name


def test_the_table_of_texts_has_every_source() -> None:
    table = TEXT[TEXT.index("## What becomes of a row") :]
    for kind in set(TASKS) - {"conversation", "regions"}:
        assert re.search(rf"\b{kind}\b", table), kind


def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    first, colors, *question, answer = capsys.readouterr().out.splitlines()
    assert first == "1 v7w rows.json: row 1"
    assert colors.count("'") == 8
    assert question[0] == "Which one is the cup?"
    assert answer == "C"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / target).is_file(), target
