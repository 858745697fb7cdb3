"""Stop words stop an answer at the token where the original's criterion first did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vip_llava.model.stopping import StopWords
from vip_llava.model.text_tokenizers import TextTokenizer

pytestmark = pytest.mark.conformance


def test_stops_where_the_original_did(
    family: Callable[[str], Path], recorded_tokenizer: Callable[[str], TextTokenizer]
) -> None:
    lines = (family("stopping") / "cases.jsonl").read_text("utf-8").splitlines()
    assert lines
    for case in map(json.loads, lines):
        stop = StopWords(recorded_tokenizer(case["tokenizer"]), case["keywords"])
        answers = [stop.feed(token) for token in case["new_ids"]]
        recorded = case["stop_after_each_new_token"]
        # Generation ends at the first yes; what the original says about later tokens of the same
        # answer (no again, once the word is out of its window) never takes effect.
        first = recorded.index(True) if True in recorded else len(recorded)
        expected = [index >= first for index in range(len(recorded))]
        assert answers == expected, case["id"]
