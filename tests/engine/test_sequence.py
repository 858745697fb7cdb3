"""Positions, slots and the end of a sequence."""

from __future__ import annotations

from typing import Any

import pytest

from vip_llava.engine.detokenizer import TextStream
from vip_llava.engine.sampler import SamplingState
from vip_llava.engine.sequence import Sequence
from vip_llava.sampling_params import SamplingParams


def sequence(**given: Any) -> Sequence:
    prompt = given.pop("prompt_ids", [1, 9, 9, 2])
    state = SamplingState(SamplingParams(seed=0), prompt)
    return Sequence(seq_id=0, prompt_ids=prompt, max_tokens=3, sampling=state, **given)


def test_ids_span_prompt_and_output() -> None:
    seq = sequence(output_ids=[5, 6], num_computed=3)
    assert [seq.ids(0, 6), seq.ids(3, 5), seq.ids(4, 5)] == [[1, 9, 9, 2, 5, 6], [2, 5], [5]]
    assert (seq.num_tokens, seq.num_pending) == (6, 3)


def test_image_tokens_are_counted_from_the_first() -> None:
    seq = sequence(image_positions=[1, 2])
    assert [seq.image_range(*span) for span in ((0, 4), (2, 4), (3, 4))] == [(0, 2), (1, 2), (2, 2)]
    assert not seq.images_computed
    seq.num_computed = 3
    assert seq.images_computed
    assert sequence().images_computed


def test_slots_follow_the_block_table() -> None:
    seq = sequence(block_table=[2, 3])
    assert (seq.slot(0), seq.slot(17), seq.first_slot) == (32, 49, 32)
    assert seq.slot_mapping(18).tolist() == list(range(32, 50))
    seq.block_table = [3, 1]
    assert (seq.slot(15), seq.slot(16), seq.first_slot) == (63, 16, None)
    assert seq.slot_mapping(17).tolist() == [*range(48, 64), 16]


@pytest.mark.parametrize(("tokens", "reason"), [([5, 6, 7], "length"), ([5, 3], "stop")])
def test_a_sequence_ends_by_length_or_stop_id(tokens: list[int], reason: str) -> None:
    seq = sequence()
    events = [seq.append(token, None, {3}) for token in tokens]
    assert [event.finish_reason for event in events] == [None] * (len(tokens) - 1) + [reason]
    assert seq.output().tokens == tuple(token for token in tokens if token != 3)
    assert list(seq.events) == events


def test_a_stop_string_ends_a_sequence_and_is_not_in_its_text() -> None:
    stream = TextStream(lambda ids: "".join(map(chr, ids)), ["b"])
    seq = sequence(text_stream=stream)
    assert [seq.append(ord(one), None, ()).text for one in "ab"] == ["a", ""]
    assert (seq.output().text, seq.output().finish_reason) == ("a", "stop")
