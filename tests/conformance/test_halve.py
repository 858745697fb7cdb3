"""The script that halves a folder of recorded results; needs no recorded results."""

from __future__ import annotations

from pathlib import Path

from .halve import halve


def test_the_halves_hold_every_case_once_and_all_other_files(tmp_path: Path) -> None:
    source = tmp_path / "golden"
    (source / "tokens").mkdir(parents=True)
    (source / "tokens" / "v1.jsonl").write_text("1\n2\n3\n")
    (source / "tokens" / "versions.json").write_text("{}")
    for name, odd in (("odd", True), ("even", False)):
        halve(source, tmp_path / name, odd=odd)
        assert (tmp_path / name / "tokens" / "versions.json").read_text() == "{}"
    assert (tmp_path / "odd" / "tokens" / "v1.jsonl").read_text() == "1\n3\n"
    assert (tmp_path / "even" / "tokens" / "v1.jsonl").read_text() == "2\n"
