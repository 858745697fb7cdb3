"""Wordings of VCR questions and answers in training: introductions, "why", options, letters.

The pools are those of the recorded training texts. The module does not know rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["INTRODUCTIONS", "WHICH_REASON", "WHY", "choices", "chosen"]

INTRODUCTIONS = (
    "After observing the source image, could you please answer the following:",
    "Based on the provided source image, please answer this question:",
    "Considering the source image, what's your answer to:",
    "In light of the source image, could you please answer:",
    "In the context of the source image, can you answer:",
    "Please provide an answer for the subsequent question, keeping the source image in mind:",
    "Taking into account the source image, please answer:",
    "Upon examining the source image, what would your answer be to:",
    "Using the source image as a reference, please respond to:",
    "With reference to the source image, please respond to the following query:",
)

_REASON_NOUNS = """
background to that|basis for your assertion|deal with that|driving force behind your conclusion
evidence that supports your view|explanation for that|foundation of your assertion
impetus for your belief|logic behind it|logic behind your argument|motivation behind your decision
rationale for your decision|rationale for your opinion|real deal here|reason behind it
reasoning behind your opinion|source of your reasoning|story behind that
thought process behind your decision
"""
WHY = (
    "why",
    "why?",
    "What's your reasoning?",
    "What's your thought process?",
    "What makes you say that?",
    "What makes you think that way?",
    "What led you to that conclusion?",
    "What assumptions underlie your reasoning?",
    "What evidence supports your viewpoint?",
    "What experiences have shaped your perspective?",
    "What factors influenced your perspective?",
    "Why do you believe that?",
    "Why do you believe that to be true?",
    "Why do you feel that way?",
    "Why do you have that impression?",
    "Why do you hold that belief?",
    "Why do you think that?",
    "How did you arrive at that perspective?",
    "Can you explain the basis for your thinking?",
    "Can you provide some context for your opinion?",
    *(
        f"What's the {what}?"
        for line in _REASON_NOUNS.split("\n")
        for what in line.split("|")
        if what
    ),
)

WHICH_REASON = (
    "I give you a question and its answer, I need you to provide a rationale explaining why the "
    'answer is right. "{}" The answer is "{}".What is the rationale for this decision?'
)

_OFFERS = (
    "Available choices are as follows:",
    "Here are your options:",
    "Please pick one from the given possibilities:",
    "Select from the options below:",
    "The following options are available:",
    "Which among these would you choose:",
    "You can select from these alternatives:",
    "You have the following selections:",
    "You may choose from the following:",
    "Your choices include:",
)
_BEST = [
    "best",
    "correct",
    "definitive",
    "final",
    "ideal",
    "most accurate",
    "most fitting",
    "only",
    "optimal",
    "ultimate",
]
_SEPARATORS = ("- ", "-> ", ": ", ":: ", "; ", "⇒ ")


def choices(texts: Sequence[str], rng: random.Random) -> str:
    """ "Here are your options: (A) ... (B) ... (C) ... (D) ..."."""
    offered = [f"({letter}) {text}" for letter, text in zip("ABCD", texts, strict=True)]
    return " ".join([rng.choice(_OFFERS), *offered])


def chosen(label: int, texts: Sequence[str], rng: random.Random) -> str:
    """The answer to a question with options: its letter in one of seven forms, five with its text."""
    letter, best = f"({'ABCD'[label]})", rng.choice(_BEST)
    text = _embedded(texts[label])
    return rng.choice(
        (
            letter,
            f"The {best} answer is {letter}",
            f"The {best} answer is {letter} - {text}",
            f"{letter} - The {best} because {text}",
            f"{letter}{rng.choice(_SEPARATORS)}{text}",
            f"Answer {letter}: {text}",
            f"Opt for {letter} if {text}",
        )
    )


def _embedded(sentence: str) -> str:
    """A sentence with a lower-case first letter, unless it begins with "I"."""
    first = sentence.split(maxsplit=1)[0]
    if first == "I" or first.startswith(("I'", "I’")):
        return sentence
    return sentence[0].lower() + sentence[1:]
