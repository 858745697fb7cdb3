"""Tokenizers are rebuilt exactly, and prompts with `<image>` give the recorded ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vip_llava.prompting.templates import IMAGE_TEXT, Span
from vip_llava.prompting.tokenization import encode_spans
from vip_llava.prompting.tokenizers import TextTokenizer

from .conftest import recorded_cases, skip_without

pytestmark = pytest.mark.conformance


def encode_marked(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """Ids of a prompt in which `<image>` and control tokens mean what they spell."""
    first, *others = prompt.split(IMAGE_TEXT)
    spans = [Span(first)]
    for text in others:
        spans += [Span(IMAGE_TEXT, "image"), Span(text)]
    return encode_spans(tokenizer, spans).ids


def test_rebuilt_tokenizers(
    family: Callable[[str], Path], recorded_tokenizer: Callable[[str], TextTokenizer]
) -> None:
    checks = json.loads((family("tokenizers") / "checks.json").read_text("utf-8"))
    for name, check in checks.items():
        tokenizer = recorded_tokenizer(name)
        assert (tokenizer.bos_id, tokenizer.eos_id) == (check["bos"], check["eos"]), name
        assert tokenizer.unk_id == check["unk"], name
        for sample in check["encodings"]:
            ids = encode_marked(tokenizer, sample["text"])
            assert ids == sample["input_ids"], (name, sample["text"])


def test_prompts_with_images(
    family: Callable[[str], Path], recorded_tokenizer: Callable[[str], TextTokenizer]
) -> None:
    cases = list(recorded_cases(family("image_token") / "cases.jsonl"))
    skip_without(len(cases), "prompt with images")
    for case in cases:
        ids = encode_marked(recorded_tokenizer(case["tokenizer"]), case["prompt"])
        assert ids == case["input_ids"], case["id"]
