"""`vip-llava eval judge`: grade the open answers of a run with a judge over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vip_llava.cli.evaluate import show
from vip_llava.cli.settings import DebugFlag
from vip_llava.cli.terminal import counting, note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.evaluation.items import Row

__all__ = ["JUDGE_EPILOG", "judge"]

JUDGE_EPILOG = """Examples

  vip-llava eval judge runs/vip-bench --endpoint https://localhost/v1 --judge-model gpt-4 --dry-run

  vip-llava eval judge runs/vip-bench --endpoint http://127.0.0.1:8000/v1 --judge-model mine --times 1 --dry-run

Without --dry-run the answers are sent and graded. The key comes from the environment only.
"""
_CHARACTERS = 4  # of a token, about


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run of vip-bench.")],
    *,
    endpoint: Annotated[
        str,
        typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible API, up to /v1."),
    ],
    judge_model: Annotated[
        str, typer.Option("--judge-model", metavar="NAME", help="The judge's name there.")
    ],
    times: Annotated[
        int, typer.Option("--times", metavar="N", min=1, help="How often each answer is graded.")
    ] = 5,
    key_variable: Annotated[
        str,
        typer.Option("--key-env", metavar="VARIABLE", help="Environment variable with the key."),
    ] = "OPENAI_API_KEY",
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt", metavar="FILE", help="The judge's prompt, if not this program's own."
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", min=1, max=64, help="Questions at once.")
    ] = 4,
    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", metavar="N", min=1, help="Longest reply; one number is 3."),
    ] = 3,
    price: Annotated[
        str | None,
        typer.Option(
            "--price", metavar="IN,OUT", help="Cost of a million tokens in and out, to sum it up."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    debug: DebugFlag = False,
) -> None:
    """Grade a run's answers with a judge: totals, capabilities, and their spread.

    What is graded is kept in the run's folder, so that a stopped grading goes on. The answers and
    their questions are sent to URL, images are not.
    """
    prices = _prices(price)
    from vip_llava.evaluation.judge.endpoint import Endpoint
    from vip_llava.evaluation.judge.grading import grade_run, judgeable
    from vip_llava.evaluation.judge.prompt import prompt_text
    from vip_llava.evaluation.judge.tables import write_judged

    folder = run.expanduser()
    rows = judgeable(folder)
    prompt = prompt_text(prompt_file)
    key = os.environ.get(key_variable) or None
    told = Endpoint(
        endpoint,
        judge_model,
        key=key,
        max_tokens=max_tokens,
        on_wait=lambda seconds, why: note(f"waiting {seconds:.0f} s: {why}"),
    )
    if dry_run:
        _foresee(rows, prompt, times, prices)
        return
    with told, counting(f"grading by {judge_model}", "grades") as progress:
        grades = grade_run(folder, told, prompt, times=times, parallel=parallel, on_grade=progress)
    scores = write_judged(folder, rows, grades)
    asked, said = grades.tokens
    note(
        f"{len(grades.grades)} grades, {asked} tokens in and {said} out{_cost(prices, asked, said)}"
    )
    unread = sum(grade.score is None for grade in grades.grades)
    if unread:
        note(f"{unread} grades held no number and count as 0")
    show(scores)


def _foresee(
    rows: Sequence[Row], prompt: str, times: int, prices: tuple[float, float] | None
) -> None:
    """What a grading will send and cost, about; what is graded already is not left out."""
    sent = [row for row in rows if row.failed is None]
    texts = (prompt + str(r.facts["question"]) + str(r.expected) + r.answer for r in sent)
    asked = times * sum(len(text) for text in texts) // _CHARACTERS
    count = times * len(sent)
    note(
        f"{count} grades, about {asked} tokens in{_cost(prices, asked, 3 * count)}; nothing was sent"
    )


def _prices(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"--price {text}: two numbers are wanted, like --price 30,60") from None
    return first, second


def _cost(prices: tuple[float, float] | None, asked: int, said: int) -> str:
    if prices is None:
        return ""
    return f", cost {(asked * prices[0] + said * prices[1]) / 1e6:.2f}"
