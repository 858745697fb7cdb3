"""Joined pieces are the whole text; no incomplete characters, no beginnings of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.engine.detokenizer import TextStream


def from_bytes(ids: Sequence[int]) -> str:
    """One token for each byte, as in a byte-level vocabulary."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces_of(
    text: str, stops: Sequence[str] = (), trim: bool = False
) -> tuple[list[str], TextStream]:
    stream = TextStream(from_bytes, stops, trim=trim)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            return pieces, stream
    return [*pieces, stream.finish()], stream


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=80))
def test_pieces_join_to_the_text(text: str) -> None:
    pieces, stream = pieces_of(text)
    assert "".join(pieces) == text == stream.text
    assert "\ufffd" not in stream.text
    trimmed, _ = pieces_of(text, trim=True)
    assert "".join(trimmed) == text.strip()


@given(st.text("ab .", max_size=60), st.lists(st.text("ab .", min_size=1, max_size=4), max_size=3))
def test_the_earliest_stop_string_ends_the_text(text: str, stops: list[str]) -> None:
    pieces, stream = pieces_of(text, stops)
    released = "".join(pieces)
    # The text ends as soon as any stop string is complete, before that string.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    assert text.startswith(released)
    if ends:
        seen = text[: min(ends)]
        assert released == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
    else:
        assert released == text


def test_an_incomplete_character_is_held_back() -> None:
    stream = TextStream(from_bytes)
    assert [stream.push(byte) for byte in "né!".encode()] == ["n", "", "é", "!"]


def test_an_incomplete_character_at_the_end_is_dropped() -> None:
    stream = TextStream(from_bytes)
    assert [stream.push(byte) for byte in "a€".encode()[:-1]] == ["a", "", ""]
    assert stream.finish() == ""
    assert stream.text == "a"


def test_a_possible_stop_string_is_held_back() -> None:
    stream = TextStream(from_bytes, ["</s>"])
    assert [stream.push(byte) for byte in b"a</i"] == ["a", "", "", "</i"]
    assert [stream.push(byte) for byte in b"<"] == [""]
    assert stream.finish() == "<"


def test_no_token_may_follow_a_stop() -> None:
    stream = TextStream(from_bytes, ["."])
    stream.push(ord("."))
    with pytest.raises(RuntimeError, match="stop string"):
        stream.push(ord("a"))


def test_trailing_white_space_is_held_back() -> None:
    stream = TextStream(from_bytes, trim=True)
    assert [stream.push(byte) for byte in b"  a b "] == ["", "", "a", "", " b", ""]
    assert stream.finish() == ""


def test_only_recent_tokens_are_decoded() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return from_bytes(ids)

    stream = TextStream(decode)
    for byte in b"word " * 200:
        stream.push(byte)
    assert longest <= 40
    assert stream.text == "word " * 200


def test_equals_a_real_tokenizer_decoding_all_at_once(tiny_model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    text = "Étienne said: 这是一只狗 🐕‍🦺, isn't it ?  Yes .\n\n  (two spaces)" * 5
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer.decode)
    assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == text
