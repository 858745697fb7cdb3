"""Stop words: has an answer that is being generated reached a text at which it ends?

It knows the new tokens of one answer and how to decode them; it does not know the prompt (whose
words must never stop an answer) nor the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vip_llava.model.text_tokenizers import TextTokenizer, as_text_tokenizer

__all__ = ["StopWords"]

# More tokens than a stop word has letters are decoded, since its first letters may share a token.
_MARGIN = 4


class StopWords:
    """Feed the new ids of one answer one by one; `True` once a stop word was reached, and ever after."""

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        """`words` may be control tokens' texts (`</s>`) or any text (`###`)."""
        if not all(words):
            raise ValueError("a stop word can't be empty")
        text: TextTokenizer = as_text_tokenizer(tokenizer)
        self._ids = frozenset(text.controls[word].id for word in words if word in text.controls)
        self._words = tuple(words)
        self._decode: Callable[[Sequence[int]], str] = text.decode
        # A letter is at most four bytes, and a byte may be a token of its own.
        self._window = 4 * max(map(len, words), default=0) + _MARGIN
        self._recent: list[int] = []
        self.stopped = False

    def feed(self, token: int) -> bool:
        """Take the next id; returns whether the answer has ended."""
        if self.stopped:
            return True
        self._recent = [*self._recent[-self._window :], token]
        written = self._decode(self._recent)
        self.stopped = token in self._ids or any(word in written for word in self._words)
        return self.stopped
