"""The best candidate resolution against the recorded one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vip_llava.prompting.geometry import best_resolution

pytestmark = pytest.mark.conformance


def test_the_best_candidate_is_the_recorded_one(family: Callable[[str], Path]) -> None:
    lines = (family("resolution") / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "error" not in record]
    assert records, "no usable record"
    wrong = {}
    for record in records:
        candidates = [(width, height) for width, height in record["candidates"]]
        best = best_resolution(tuple(record["size"]), candidates)
        if list(best) != record["best"]:
            wrong[record["id"]] = best
    assert not wrong
