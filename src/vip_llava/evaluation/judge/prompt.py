"""What a judge is asked, and how its reply is read: the contract of the published ViP-Bench evaluator.

A table of examples with the columns question, ground truth, prediction, correctness, whose last line
lacks the correctness; `<AND>` and `<OR>` in the truth; a number from 0.0 to 1.0 as the reply. The wording
and the examples here are our own. Scores depend on the wording: for numbers to set beside published ones
give the published text as a file, which `prompt_text` reads.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from vip_llava.errors import DataError

__all__ = ["HINT", "PROMPT", "fingerprint", "line", "prompt_text", "read_score"]

PROMPT = """\
You grade answers to questions about images. Each line of the table gives a question, the ground truth \
and a model's prediction; its last column is how correct the prediction is: 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, \
0.6, 0.7, 0.8, 0.9 or 1.0, where 0.0 is totally wrong and 1.0 totally right. Where the ground truth joins \
elements with <AND>, a prediction is totally right only if it has all of them, and gets part of the score \
for some; where it joins them with <OR>, any one of them is enough. Judge what is said, not how. Fill in \
the last column of the last line: write the number alone.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
How many apples are within the blue ellipse? | 4 <OR> four | There are three apples. | 0.0
How many apples are within the blue ellipse? | 4 <OR> four | four of them | 1.0
Which solutions has the equation marked by the red scribble? | 2 <AND> -7 | x = 2 | 0.5
Which solutions has the equation marked by the red scribble? | 2 <AND> -7 | -7 and 2 | 1.0
Which solutions has the equation marked by the red scribble? | 2 <AND> -7 | 2, -7 or 5 | 0.7
Why is the man pointed to by the green arrow wet? | He has just climbed out of the lake beside him, since \
his boat turned over. | The man is wet because it is raining. | 0.1
Why is the man pointed to by the green arrow wet? | He has just climbed out of the lake beside him, since \
his boat turned over. | He fell into the lake. | 0.6
Why is the man pointed to by the green arrow wet? | He has just climbed out of the lake beside him, since \
his boat turned over. | His boat capsized and he had to swim to the shore of the lake. | 1.0
"""

#: Added where a reply was no number, for the next try.
HINT = "\nPredict the correctness of the answer (digit): "

_NUMBER = re.compile(r"\s*(?:\*\*)?(\d(?:\.\d+)?|\.\d+)(?![\d.]*\d)")


def prompt_text(path: Path | None = None) -> str:
    """The text before the line to grade: ours, or that of a file. Raises DataError."""
    if path is None:
        return PROMPT
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    if "Correctness" not in text or "|" not in text:
        raise DataError(
            f"{path}: no prompt of a judge; a table with Question | Ground truth | Prediction | "
            "Correctness is expected"
        )
    return text


def fingerprint(prompt: str) -> str:
    """A short name of a prompt's text, kept beside its scores."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def line(question: str, truth: str, prediction: str) -> str:
    """The table's last line, without the correctness."""
    spread = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return " | ".join([question, spread, prediction, ""])


def read_score(reply: str) -> float | None:
    """The number that a reply begins with, if it is within 0..1."""
    found = _NUMBER.match(reply)
    if found is None:
        return None
    score = float(found[1])
    return score if 0.0 <= score <= 1.0 else None
