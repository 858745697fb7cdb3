"""The judge's prompt and how its reply is parsed: the contract of the published evaluator.

The prompt is a table of examples with the columns question, ground truth, prediction, correctness;
its last line lacks the correctness. The ground truth may hold `<AND>` and `<OR>`; the reply is a
number from 0.0 to 1.0. The wording and the examples here are this project's own, and scores depend
on the wording. For scores to compare with published ones, `read_prompt` reads the published text
from a file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from vip_llava.errors import DataError

__all__ = ["HINT", "PROMPT", "parse_score", "prompt_fingerprint", "read_prompt", "table_row"]

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

#: Appended for the next try after a reply without a number.
HINT = "\nPredict the correctness of the answer (digit): "

_NUMBER = re.compile(r"\s*(?:\*\*)?(\d(?:\.\d+)?|\.\d+)(?![\d.]*\d)")


def read_prompt(path: Path | None = None) -> str:
    """The text before the row to grade: from a file, or `PROMPT`. Raises DataError."""
    if path is None:
        return PROMPT
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    if "Correctness" not in text or "|" not in text:
        raise DataError(
            f"{path}: not a prompt for a judge; it must hold a table with Question | Ground truth | "
            "Prediction | Correctness"
        )
    return text


def prompt_fingerprint(prompt: str) -> str:
    """A short hash of the prompt, which is stored with its scores."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def table_row(question: str, truth: str, prediction: str) -> str:
    """The last row of the table, without the correctness."""
    spaced = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return " | ".join([question, spaced, prediction, ""])


def parse_score(reply: str) -> float | None:
    """The number at the start of a reply, if it is within 0..1."""
    found = _NUMBER.match(reply)
    if found is None:
        return None
    score = float(found[1])
    return score if 0.0 <= score <= 1.0 else None
