"""Grades a run of ViP-Bench with a judge, several times, and resumes an interrupted grading.

Grades are lines of a file in the run directory, one file per judge and prompt. It does not know
HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from vip_llava.errors import DataError
from vip_llava.evaluation.jsonl import complete_lines
from vip_llava.evaluation.judge.endpoint import JudgeReply
from vip_llava.evaluation.judge.prompt import HINT, parse_score, prompt_fingerprint, table_row
from vip_llava.evaluation.results import ResultRow
from vip_llava.evaluation.run_directory import RunDirectory, slug

__all__ = ["Grade", "Grades", "Judge", "gradable_rows", "grade_run"]

_MAX_TRIES = 5  # per grade, if replies hold no number; as in the published evaluator
_TEMPERATURE_STEP = 0.5  # added with each of them


class Judge(Protocol):
    """What grades an answer; see `JudgeEndpoint`."""

    model: str

    def ask(self, prompt: str, temperature: float = 0.0) -> JudgeReply: ...


@dataclass(frozen=True, slots=True)
class Grade:
    """One grade. score: 0..1, or None if no reply held a number; that counts as 0."""

    id: str
    run: int
    score: float | None
    content: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    tries: int


@dataclass(frozen=True, slots=True)
class Grades:
    """The grades of a run by one judge with one prompt; `times` grades per row."""

    judge: str
    prompt: str
    times: int
    grades: tuple[Grade, ...]

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens, as the judge counted them."""
        return (
            sum(grade.prompt_tokens for grade in self.grades),
            sum(grade.completion_tokens for grade in self.grades),
        )

    @property
    def unread(self) -> int:
        """How many grades hold no number."""
        return sum(grade.score is None for grade in self.grades)

    @property
    def by_row(self) -> dict[str, list[Grade]]:
        """Id of a row -> its grades in the order of the runs."""
        found: dict[str, list[Grade]] = {}
        for grade in sorted(self.grades, key=lambda grade: grade.run):
            found.setdefault(grade.id, []).append(grade)
        return found

    @property
    def scores(self) -> dict[str, list[float]]:
        """Id of a row -> the scores of its runs; a grade without a number is 0."""
        return {id: [each.score or 0.0 for each in row] for id, row in self.by_row.items()}


def grade_run(
    run: Path,
    judge: Judge,
    prompt: str,
    *,
    times: int = 5,
    parallel: int = 4,
    on_grade: Callable[[int, int], None] | None = None,
) -> Grades:
    """Grade every answer of a run `times` times; stored grades are not asked for again.

    A failed row has no answer to grade and counts as 0. on_grade: called with the number of grades
    done and of all. Raises DataError for an unfinished run or one of another benchmark, and
    RequestError if the judge refuses.
    """
    rows = gradable_rows(run)
    fingerprint = prompt_fingerprint(prompt)
    path = run / "grades" / f"{slug(judge.model)}-{fingerprint}.jsonl"
    path.parent.mkdir(exist_ok=True)
    known = {(grade.id, grade.run): grade for grade in _read_grades(path)}
    wanted = [(row, number) for number in range(times) for row in rows if row.failed is None]
    left = [(row, number) for row, number in wanted if (row.id, number) not in known]
    done = len(wanted) - len(left)
    pool = ThreadPoolExecutor(max(1, parallel), thread_name_prefix="judge")
    try:
        futures = [pool.submit(_grade, judge, prompt, row, number) for row, number in left]
        for future in as_completed(futures):
            grade = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(grade), ensure_ascii=False) + "\n")
            known[grade.id, grade.run] = grade
            done += 1
            if on_grade is not None:
                on_grade(done, len(wanted))
    finally:
        # A thread may be waiting up to a minute for a busy server; do not wait for it.
        pool.shutdown(wait=False, cancel_futures=True)
    kept = tuple(known[row.id, number] for row, number in wanted)
    return Grades(judge.model, fingerprint, times, kept)


def gradable_rows(path: Path) -> list[ResultRow]:
    """The rows of a finished ViP-Bench run. Raises DataError for any other run."""
    run = RunDirectory.open(path)
    benchmark = run.info["config"].get("benchmark")
    if benchmark != "vip-bench":
        raise DataError(f"{path} is a run of {benchmark}, whose answers need no judge")
    if not (path / "scores.json").is_file():
        raise DataError(f"{path}: the run is not finished; the same command resumes it")
    return run.rows()


def _grade(judge: Judge, prompt: str, row: ResultRow, number: int) -> Grade:
    question = str(row.facts["question"])
    text = f"{prompt}\n{table_row(question, str(row.expected), row.answer)}"
    replies = [judge.ask(text)]
    while (score := parse_score(replies[-1].text)) is None and len(replies) < _MAX_TRIES:
        replies.append(judge.ask(text + HINT, _TEMPERATURE_STEP * len(replies)))
    return Grade(
        id=row.id,
        run=number,
        score=score,
        content=replies[-1].text[:200],
        model=replies[-1].model,
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        tries=len(replies),
    )


def _read_grades(path: Path) -> list[Grade]:
    try:
        return [Grade(**json.loads(text)) for text in complete_lines(path)]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} can't be read as grades: {error}") from None
