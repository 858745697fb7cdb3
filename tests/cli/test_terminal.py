"""Notes, errors and progress on stderr."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.cli import terminal


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = terminal.printable(text)
    assert not any(ord(mark) < 32 and mark not in "\n\t" for mark in shown)
    assert "\x7f" not in shown and "\x9b" not in shown
    assert terminal.printable(shown) == shown


def test_text_in_any_language_is_kept() -> None:
    assert terminal.printable("äöü 漢字 🦙\n\tx") == "äöü 漢字 🦙\n\tx"
    assert terminal.printable("\x1b[31mred\x1b]0;title\x07") == "[31mred]0;title"


def test_progress_without_a_terminal_is_one_line_per_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with terminal.loading("opening x") as progress:
        for done in range(5):
            progress("fetching [bold]y[/bold]", done, 5)
        progress("reading", 0, 0)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "vip-llava: opening x",
        "vip-llava: fetching [bold]y[/bold]",
        "vip-llava: reading",
    ]


def test_a_progress_bar_disappears_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    monkeypatch.setattr(
        terminal, "stderr", lambda: Console(stderr=True, force_terminal=True, width=80)
    )
    with terminal.loading("opening x") as progress:
        progress("reading", 1, 2)
    shown = capsys.readouterr()
    assert shown.out == "" and "reading" in shown.err and shown.err.endswith("\x1b[2K")


def test_a_piped_answer_is_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_answer("a\x1bb", end="\n")
    assert capsys.readouterr().out == "a\x1bb\n"


def test_errors_and_notes_have_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.error_line("[x] is \x1b[31m wrong")
    terminal.note("[y]")
    assert capsys.readouterr().err == "vip-llava: error: [x] is [31m wrong\nvip-llava: [y]\n"


def test_a_log_gets_one_progress_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.counting("marked", "questions") as progress:
        for done in range(1, 41):
            clock[0] += 5
            progress(done, 40)
    with terminal.counting("rows.jsonl", "rows") as progress:
        progress(1, 0)
        clock[0] += 90
        progress(2, 0)
    assert capsys.readouterr().err.splitlines() == [
        "vip-llava: marked: 12 of 40 questions in 1 min",
        "vip-llava: marked: 24 of 40 questions in 2 min",
        "vip-llava: marked: 36 of 40 questions in 3 min",
        "vip-llava: rows.jsonl: 2 rows in 2 min",
    ]
