"""Captions to words, in the manner of the Penn Treebank tokenizer that caption scores are made with.

Lower case, punctuation dropped, "don't" as "do n't" and "dog's" as "dog 's". The reference is a Java
program; what captions hold comes out the same, also that brackets stay as "-lrb-" and "-rrb-", which
it means to drop and does not. Rare things such as dates and units may come out otherwise.
"""

from __future__ import annotations

import re

__all__ = ["words"]

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


def words(text: str) -> list[str]:
    """The words of a caption."""
    plain = text.translate(_QUOTES).lower()
    plain = _NOT.sub(r"\1 n't", plain).replace("cannot", "can not")
    plain = plain.replace("(", " -lrb- ").replace(")", " -rrb- ")
    return _TOKEN.findall(plain)
