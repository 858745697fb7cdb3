from __future__ import annotations

import pytest

from vip_llava.model.stopping import StopWords
from vip_llava.model.text_tokenizers import JsonTokenizer


def feed(tokenizer: JsonTokenizer, text: str, *words: str) -> list[bool]:
    stop = StopWords(tokenizer, words)
    return [stop.feed(piece.id) for piece in tokenizer.plain(text, at_start=True)]


def test_stops_at_the_token_that_completes_a_word(chat_tokenizer: JsonTokenizer) -> None:
    answers = feed(chat_tokenizer, "A dog.### and more", "###", "never")
    first = answers.index(True)
    assert all(answers[first:])
    ids = [piece.id for piece in chat_tokenizer.plain("A dog.### and more", at_start=True)]
    assert "###" in chat_tokenizer.decode(ids[: first + 1])
    assert "###" not in chat_tokenizer.decode(ids[:first])


def test_a_long_answer_without_the_word(chat_tokenizer: JsonTokenizer) -> None:
    assert not any(feed(chat_tokenizer, "A dog. " * 50, "###"))


def test_a_word_in_bytes(chat_tokenizer: JsonTokenizer) -> None:
    assert feed(chat_tokenizer, "x 🐶🐶", "🐶🐶")[-1]


def test_a_control_token_stops_though_it_has_no_text(chat_tokenizer: JsonTokenizer) -> None:
    stop = StopWords(chat_tokenizer, ["<|im_end|>"])
    assert not stop.feed(chat_tokenizer.plain("dog", at_start=True)[0].id)
    assert stop.feed(chat_tokenizer.controls["<|im_end|>"].id)


def test_an_empty_word(chat_tokenizer: JsonTokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        StopWords(chat_tokenizer, [""])
