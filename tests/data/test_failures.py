"""Bad rows are counted, named, logged and limited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vip_llava.data.failures import Failures
from vip_llava.errors import DataError


def fail(failures: Failures, number: int) -> None:
    failures.seen()
    failures.add(f"mix.json: row {number}", f"id-{number}", f"box {number} is 'x{number}'")


def test_no_failure_is_allowed_at_zero() -> None:
    for limit in (0, 0.0):
        with pytest.raises(DataError, match="1 of 1 rows are bad"):
            fail(Failures(limit), 1)


def test_a_number_of_rows_may_fail() -> None:
    failures = Failures(3)
    failures.seen(1000)
    for number in range(3):
        fail(failures, number)
    with pytest.raises(DataError, match="4 of 1004 rows are bad, and the limit is 3 rows"):
        fail(failures, 4)


def test_a_share_of_the_rows_seen_may_fail_and_at_least_one() -> None:
    failures = Failures(0.01)
    fail(failures, 1)  # of one row: the share alone would allow none
    with pytest.raises(DataError, match="2 of 2 rows"):
        fail(failures, 2)
    failures.seen(398)
    assert failures.allowed == 4
    fail(failures, 3)
    fail(failures, 4)
    with pytest.raises(DataError, match=r"the limit is 0\.01 of the rows seen"):
        fail(failures, 5)


def test_the_summary_names_the_first_rows(tmp_path: Path) -> None:
    failures = Failures(7, tmp_path / "run")
    with pytest.raises(DataError) as caught:
        for number in range(9):
            fail(failures, number)
    message = str(caught.value)
    assert "mix.json: row 0 ('id-0'): box 0 is 'x0'" in message
    assert "row 4" in message
    assert "row 5" not in message
    assert str(tmp_path / "run" / "failures.jsonl") in message


def test_every_bad_row_is_logged(tmp_path: Path) -> None:
    failures = Failures(1, tmp_path)
    fail(failures, 1)
    with pytest.raises(DataError):
        fail(failures, 2)
    written = [
        json.loads(line) for line in (tmp_path / "failures.jsonl").read_text("utf-8").splitlines()
    ]
    assert written == [
        {"where": f"mix.json: row {n}", "id": f"id-{n}", "reason": f"box {n} is 'x{n}'"}
        for n in (1, 2)
    ]
    fail(Failures(1, tmp_path), 3)  # a resumed run goes on in the same file
    assert len((tmp_path / "failures.jsonl").read_text("utf-8").splitlines()) == 3


def test_no_file_is_written_without_a_failure(tmp_path: Path) -> None:
    Failures(1, tmp_path).seen(10)
    assert list(tmp_path.iterdir()) == []


def test_the_report_counts_kinds_of_reasons() -> None:
    failures = Failures(10)
    fail(failures, 1)
    fail(failures, 2)
    failures.seen(3)
    failures.add("mix.json: row 9", "id-9", "no image")
    report = failures.report()
    assert report["rows"] == 5
    assert report["failed"] == 3
    assert report["limit"] == 10
    assert report["reasons"] == {"box … is …": 2, "no image": 1}
    assert [entry["id"] for entry in report["first"]] == ["id-1", "id-2", "id-9"]


def test_a_resumed_run_continues_counting() -> None:
    failures = Failures(2)
    fail(failures, 1)
    fail(failures, 2)
    resumed = Failures(2)
    resumed.restore(json.loads(json.dumps(failures.report())))
    assert resumed.report() == failures.report()
    with pytest.raises(DataError, match="3 of 3 rows"):
        fail(resumed, 3)


@pytest.mark.parametrize("limit", [-1, 1.0, 1.5, -0.1, float("nan"), True])
def test_an_invalid_limit_is_refused(limit: float) -> None:
    with pytest.raises(DataError, match="must be a whole number of rows or a fraction"):
        Failures(limit)
