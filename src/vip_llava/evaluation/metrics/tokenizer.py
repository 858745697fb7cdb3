"""Words of captions, as the Penn Treebank tokenizer of the published caption scores splits them.

Lower case, without punctuation; "don't" is "do n't" and "dog's" is "dog 's". The reference is a
Java program. Captions give the same words, including that brackets remain as "-lrb-" and "-rrb-",
which the reference means to drop and does not. Rare tokens such as dates and units may differ.
"""

from __future__ import annotations

import re

__all__ = ["tokenize"]

_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"'})
_TOKEN = re.compile(
    r"""
    \w+(?:[-/]\w+)+                       # t-shirt, 7-up
  | \d+(?:[.,:]\d+)*(?:st|nd|rd|th|s)?    # 3, 1,000, 10:30, 1980s
  | (?:[a-z]\.){2,}                       # u.s.
  | [^\W\d_]+n(?='t\b)                    # do + n't
  | n't\b
  | '(?:s|m|d|ll|re|ve)\b
  | \w+
  | -[lr]rb-
  | [$&%]
    """,
    re.VERBOSE,
)
_NOT = re.compile(r"\b([a-z]+)n't\b")


def tokenize(text: str) -> list[str]:
    """The words of a caption."""
    plain = text.translate(_QUOTES).lower()
    plain = _NOT.sub(r"\1 n't", plain).replace("cannot", "can not")
    plain = plain.replace("(", " -lrb- ").replace(")", " -rrb- ")
    return _TOKEN.findall(plain)
