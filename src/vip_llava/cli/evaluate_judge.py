"""`vip-llava eval judge`: grade the open answers of a run with a judge over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vip_llava.cli.evaluate import show
from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.terminal import counting, note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.evaluation.results import ResultRow

__all__ = ["JUDGE_EPILOG", "judge"]

JUDGE_EPILOG = """Examples

  vip-llava eval judge runs/vip-bench --endpoint https://localhost/v1 --judge-model gpt-4 --dry-run

  vip-llava eval judge runs/vip-bench --endpoint http://127.0.0.1:8000/v1 --judge-model mine --times 1 --dry-run

Without --dry-run the answers are sent and graded. The key is read from the environment only.
"""
_CHARACTERS_PER_TOKEN = 4  # approximately


def judge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory of a finished vip-bench run.")
    ],
    *,
    endpoint: Annotated[
        str,
        typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible API, up to /v1."),
    ],
    judge_model: Annotated[
        str, typer.Option("--judge-model", metavar="NAME", help="Name of the judge there.")
    ],
    times: Annotated[
        int, typer.Option("--times", metavar="N", min=1, help="Grades per answer.")
    ] = 5,
    key_variable: Annotated[
        str,
        typer.Option("--key-env", metavar="VARIABLE", help="Environment variable with the key."),
    ] = "OPENAI_API_KEY",
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt", metavar="FILE", help="Prompt for the judge, instead of the built-in one."
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel", metavar="N", min=1, max=64, help="Answers graded at the same time."
        ),
    ] = 4,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", metavar="N", min=1, help="Tokens of a reply; a number needs 3."
        ),
    ] = 3,
    price: Annotated[
        str | None,
        typer.Option(
            "--price",
            metavar="IN,OUT",
            help="Cost of a million prompt and reply tokens, for a total.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate what would be sent, and send nothing.")
    ] = False,
    debug: DebugFlag = False,
) -> None:
    """Grade the answers of a run with a judge: totals, capabilities, and their spread.

    Grades are stored in the run directory, so that an interrupted grading can be resumed. The
    answers and their questions are sent to URL; images are not.
    """
    prices = _prices(price)
    from vip_llava.evaluation.judge.endpoint import JudgeEndpoint
    from vip_llava.evaluation.judge.grading import gradable_rows, grade_run
    from vip_llava.evaluation.judge.prompt import read_prompt
    from vip_llava.evaluation.judge.score_files import write_judged

    folder = run.expanduser()
    rows = gradable_rows(folder)
    prompt = read_prompt(prompt_file)
    key = os.environ.get(key_variable) or None
    client = JudgeEndpoint(
        endpoint,
        judge_model,
        key=key,
        max_tokens=max_tokens,
        on_wait=lambda seconds, why: note(f"waiting {seconds:.0f} s: {why}"),
    )
    if dry_run:
        _estimate(rows, prompt, times, prices)
        return
    with client, counting(f"grading by {judge_model}", "grades") as progress:
        grades = grade_run(
            folder, client, prompt, times=times, parallel=parallel, on_grade=progress
        )
    scores = write_judged(folder, rows, grades)
    sent, received = grades.tokens
    cost = _cost(prices, sent, received)
    note(f"{len(grades.grades)} grades, {sent} prompt tokens, {received} reply tokens{cost}")
    if grades.unread:
        note(f"{grades.unread} grades held no number and count as 0")
    show(scores)


def _estimate(
    rows: Sequence[ResultRow], prompt: str, times: int, prices: tuple[float, float] | None
) -> None:
    """Estimate what a grading sends and costs, as if nothing had been graded yet."""
    sent = [row for row in rows if row.failed is None]
    texts = (prompt + str(r.facts["question"]) + str(r.expected) + r.answer for r in sent)
    tokens = times * sum(len(text) for text in texts) // _CHARACTERS_PER_TOKEN
    count = times * len(sent)
    cost = _cost(prices, tokens, 3 * count)
    note(f"{count} grades, about {tokens} prompt tokens{cost}; nothing was sent")


def _prices(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"--price {text}: write two numbers, like --price 30,60") from None
    return first, second


def _cost(prices: tuple[float, float] | None, sent: int, received: int) -> str:
    if prices is None:
        return ""
    return f", cost {(sent * prices[0] + received * prices[1]) / 1e6:.2f}"
