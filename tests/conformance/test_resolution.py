"""The best candidate resolution against the recorded one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vip_llava.prompting.geometry import best_resolution

from .conftest import recorded_cases, skip_without

pytestmark = pytest.mark.conformance


def test_the_best_candidate_is_the_recorded_one(family: Callable[[str], Path]) -> None:
    cases = recorded_cases(family("resolution") / "cases.jsonl")
    records = [record for record in cases if "error" not in record]
    skip_without(len(records), "resolution")
    wrong = {}
    for record in records:
        candidates = [(width, height) for width, height in record["candidates"]]
        best = best_resolution(tuple(record["size"]), candidates)
        if list(best) != record["best"]:
            wrong[record["id"]] = best
    assert not wrong
