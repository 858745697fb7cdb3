"""Which letter an answer chooses."""

from __future__ import annotations

import pytest

from vip_llava.evaluation.choices import parse_letter, score_letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" b. ", "B"),
        ("(B)", "B"),
        ("[b]", "B"),
        ("**C**", "C"),
        ("(B) because it is larger than (C)", "B"),
        ("B. The cat", "B"),
        ("B: the cat", "B"),
        ("B - it looks at her", "B"),
        ("B because it is larger", "B"),
        ("A because it is larger", "A"),
        ("The answer is C", "C"),
        ("The correct answer is: (d).", "D"),
        ("I would choose option D, not the others", "D"),
        ("Answer: A", "A"),
        ("I think that it must be (C), since she sits", "C"),
        ("the cat", None),
        ("a dog", None),
        ("A man is at the door", None),
        ("A", "A"),
        ("a", "A"),
        ("E", None),
        ("", None),
        ("   ", None),
        ("I don't know", None),
        ("(A) or (B)", "A"),
        ("It is either (A) or (B)", None),
        ("none of them", None),
        ("Because", None),
        ("dog", None),
    ],
)
def test_letters(answer: str, letter: str | None) -> None:
    assert parse_letter(answer) == letter


def test_a_score_has_the_parsed_letter() -> None:
    score = score_letter("B", "(b) since")
    assert (score.value, score.right, score.read) == (1.0, True, "B")
    score = score_letter("B", "no idea")
    assert (score.value, score.right, score.read) == (0.0, False, None)
