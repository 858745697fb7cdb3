from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vip_llava.errors import CheckpointError
from vip_llava.prompting.tokenizers import (
    JsonTokenizer,
    PieceTokenizer,
    TextTokenizer,
    as_text_tokenizer,
    open_tokenizer,
)

PARTS = [*"ab 0\n\t", "\u2581", "é", "漢", "🐶", "<s>", "</s>", "<unk>", "<|im_end|>", "<image>"]
PARTS += ["<sep>", "<|user|>", "<", "/s>", "dog"]
TRICKY = st.lists(st.sampled_from(PARTS)).map("".join)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["piece_tokenizer", "phi_tokenizer", "chat_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, TextTokenizer)
    return found


@quick
@given(text=TRICKY, at_start=st.booleans())
def test_plain_text_never_gives_a_control_token(
    tokenizer: TextTokenizer, text: str, at_start: bool
) -> None:
    pieces = tokenizer.plain(text, at_start=at_start)
    controls = {token.id for token in tokenizer.controls.values()}
    assert not controls & {piece.id for piece in pieces}
    assert tokenizer.decode([piece.id for piece in pieces]).strip(" ") == text.replace(
        "\u2581", " " if isinstance(tokenizer, PieceTokenizer) else "\u2581"
    ).strip(" ")


@quick
@given(text=TRICKY, at_start=st.booleans())
def test_places_cover_the_text_in_order(
    tokenizer: TextTokenizer, text: str, at_start: bool
) -> None:
    pieces = tokenizer.plain(text, at_start=at_start)
    covered = 0
    for piece in pieces:
        assert 0 <= piece.start <= piece.end <= len(text)
        assert piece.start <= covered
        covered = max(covered, piece.end)
    assert covered == len(text)


def test_legacy_puts_a_blank_before_every_stretch(piece_model: bytes) -> None:
    legacy = PieceTokenizer(piece_model)
    modern = PieceTokenizer(piece_model, legacy=False)
    at_start = legacy.plain("dog", at_start=True)
    assert legacy.plain("dog", at_start=False) == at_start
    assert modern.plain("dog", at_start=True) == at_start
    assert modern.plain("dog", at_start=False) != at_start


def test_a_vocabulary_with_a_control_token_as_a_word() -> None:
    """`ignore_merges` gives a word of the vocabulary whole; typed text must not reach it so."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<": 0, "e": 1, ">": 2, "<e>": 3, "x": 4}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.add_special_tokens([AddedToken("<e>", normalized=False)])
    tokenizer = JsonTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokenizer.controls["<e>"].id == 3
    assert [piece.id for piece in tokenizer.plain("<e>", at_start=True)] == [0, 1, 2]


def test_a_blank_before_the_first_text_only() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"\u2581": 0, "x": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # type: ignore[assignment]
    tokenizer = JsonTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [piece.id for piece in tokenizer.plain("x", at_start=True)] == [0, 1]
    assert [piece.id for piece in tokenizer.plain("x", at_start=False)] == [1]


@pytest.mark.parametrize("prefer", ["sentencepiece", "json"])
def test_saved_and_opened_again(tokenizer: TextTokenizer, prefer: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = open_tokenizer(tmp_path, prefer=prefer)  # type: ignore[arg-type]
    assert type(again) is type(tokenizer)
    assert again.controls == tokenizer.controls
    for name in ("begin_ids", "bos_id", "eos_id", "unk_id", "pad_id"):
        assert getattr(again, name) == getattr(tokenizer, name)
    text = "What is <s> the </s> dog?\n"
    for at_start in (True, False):
        assert again.plain(text, at_start=at_start) == tokenizer.plain(text, at_start=at_start)


def test_an_old_vicuna_folder(piece_model: bytes, tmp_path: Path) -> None:
    """Before `added_tokens_decoder`: tokens as descriptions, extra ones in `added_tokens.json`."""
    (tmp_path / "tokenizer.model").write_bytes(piece_model)
    described = {"__type": "AddedToken", "content": "</s>", "lstrip": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": described}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_start>": 400}))
    tokenizer = open_tokenizer(tmp_path)
    assert set(tokenizer.controls) == {"<unk>", "<s>", "</s>", "<im_start>"}
    assert (tokenizer.begin_ids, tokenizer.eos_id) == ((1,), 2)


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_files(name: str, piece_model: bytes, tmp_path: Path) -> None:
    if name == "tokenizer_config.json":
        (tmp_path / "tokenizer.model").write_bytes(piece_model)
    (tmp_path / name).write_text("{ damaged")
    with pytest.raises(CheckpointError, match=r"can't be read|is not JSON"):
        open_tokenizer(tmp_path)


def test_what_is_no_tokenizer() -> None:
    with pytest.raises(CheckpointError, match="no tokenizers backend"):
        as_text_tokenizer(object())
