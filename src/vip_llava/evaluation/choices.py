"""Which option an answer chooses: "B", "b.", "(B) because ...", "The answer is B".

The original's evaluation accepts the letter alone. Models often say more, so the letter is also
parsed from a longer answer; benchmarks report both scores. Nothing is guessed: an answer that names
no option, or several, chooses none.
"""

from __future__ import annotations

import re

from vip_llava.evaluation.results import AnswerScore

__all__ = ["parse_letter", "score_letter"]

_ALONE = re.compile(r"[\s(\[\"'*]*([A-Za-z])[\s)\].:,;\"'*]*")
# A letter that begins the answer and is set off: "(B) because", "B. The", "B: the", "**B** since".
_FRONT = re.compile(
    r"[\s\"'*]*(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?:[).:,;\]*]|\s*[-=–—]))"
)
# "B because ..." too; a lone "A" is often an article, so it needs a word that gives a reason.
_REASON = re.compile(r"([B-Z])\s+\S|(A)\s+(?:because|since|as|is)\b")
_BEFORE = re.compile(
    r"\b(?i:answer|option|choice|choose|opt for|pick|select|is)\s*(?i:is|would be)?\s*:?\s*"
    r"(?i:option|choice|letter)?\s*[\"'*(\[]*([A-Z])(?![A-Za-z'’])"
)
_BRACKETS = re.compile(r"\(([A-Za-z])\)")


def parse_letter(answer: str, letters: str = "ABCD") -> str | None:
    """The letter that an answer chooses, in upper case, or None."""
    text = answer.strip()
    alone = _ALONE.fullmatch(text)
    if alone:
        return _known(alone[1], letters)
    front = _FRONT.match(text) or _REASON.match(text)
    if front:
        found = _known(next(part for part in front.groups() if part), letters)
        if found:
            return found
    for pattern in (_BEFORE, _BRACKETS):
        named = {_known(each, letters) for each in pattern.findall(text)} - {None}
        if len(named) == 1:
            return named.pop()
        if named:
            return None
    return None


def score_letter(expected: str, answer: str) -> AnswerScore:
    """Right if the letter parsed from the answer is the expected one."""
    letter = parse_letter(answer)
    return AnswerScore(float(letter == expected), letter == expected, letter)


def _known(letter: str, letters: str) -> str | None:
    return letter.upper() if letter.upper() in letters else None
