"""Stop words stop an answer at the token where the original's criterion first did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vip_llava.engine.detokenizer import TextStream
from vip_llava.prompting.tokenizers import TextTokenizer

from .conftest import recorded_cases, skip_without

pytestmark = pytest.mark.conformance


def test_stops_where_the_original_did(
    family: Callable[[str], Path], recorded_tokenizer: Callable[[str], TextTokenizer]
) -> None:
    cases = list(recorded_cases(family("stopping") / "cases.jsonl"))
    skip_without(len(cases), "answer with stop words")
    for case in cases:
        tokenizer = recorded_tokenizer(case["tokenizer"])
        # A control token ends an answer by its id, any other text where it was written.
        ids = {
            tokenizer.controls[word].id for word in case["keywords"] if word in tokenizer.controls
        }
        stream = TextStream(tokenizer.decode, case["keywords"])
        answers, stopped = [], False
        for token in case["new_ids"]:
            if not stopped:
                stream.push(token)
                stopped = stream.stopped or token in ids
            answers.append(stopped)
        recorded = case["stop_after_each_new_token"]
        # Generation ends at the first yes; what the original says about later tokens of the same
        # answer (no again, once the word is out of its window) never takes effect.
        first = recorded.index(True) if True in recorded else len(recorded)
        expected = [index >= first for index in range(len(recorded))]
        assert answers == expected, case["id"]
