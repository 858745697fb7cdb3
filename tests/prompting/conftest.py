"""Tiny tokenizers of both kinds, trained here in milliseconds."""

from __future__ import annotations

import io

import pytest

from vip_llava.prompting.tokenizers import ControlToken, JsonTokenizer, PieceTokenizer

SENTENCES = (
    "A chat between a curious human and an artificial intelligence assistant.",
    "USER: What is the object within the red rectangle? ASSISTANT: It is a small brown dog.",
    "user assistant system What does the arrow point to, and what is in the green ellipse?",
)


@pytest.fixture(scope="session")
def piece_model() -> bytes:
    """A sentencepiece model with byte fallback, no normalisation and a dummy prefix, as Llama's."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=written,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture(scope="session")
def piece_tokenizer(piece_model: bytes) -> PieceTokenizer:
    """As a Vicuna checkpoint's: `<unk>` 0, `<s>` 1, `</s>` 2, legacy, begins with `<s>`."""
    return PieceTokenizer(piece_model)


@pytest.fixture(scope="session")
def phi_tokenizer(piece_model: bytes) -> PieceTokenizer:
    """As Phi-3's: not legacy, control tokens that eat white space on their right."""
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    controls = [
        ControlToken(name, 1000 + index, strip_right=index > 0) for index, name in enumerate(names)
    ]
    plain = [ControlToken("<unk>", 0), ControlToken("<s>", 1)]
    return PieceTokenizer(
        piece_model, legacy=False, controls=[*plain, *controls], eos="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> JsonTokenizer:
    """Byte-level BPE with ChatML's tokens, `<image>` and a token `<sep>` that is not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    backend.add_tokens([AddedToken("<sep>", normalized=False, special=False)])
    return JsonTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    )
