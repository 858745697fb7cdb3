"""Grades a run of ViP-Bench with a judge, several times, and goes on where it was stopped.

Grades are lines of one file for each judge in the run's folder. It deliberately does not know HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.items import Row
from vip_llava.evaluation.jsonl import whole_lines
from vip_llava.evaluation.judge.endpoint import Reply
from vip_llava.evaluation.judge.prompt import HINT, fingerprint, line, read_score
from vip_llava.evaluation.run_directory import RunFolder, slug

__all__ = ["Grade", "Grades", "Judge", "grade_run"]

_TRIES = 5  # replies without a number, as in the published evaluator
_HOTTER = 0.5  # and how much the temperature grows with each


class Judge(Protocol):
    """What grades; see `Endpoint`."""

    model: str

    def ask(self, prompt: str, temperature: float = 0.0) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Grade:
    """One grade: `score` 0..1; None if no reply held a number, which counts as 0 and is reported."""

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
    """All grades of a run, by one judge with one prompt."""

    judge: str
    prompt: str
    times: int
    grades: tuple[Grade, ...]

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens as the judge counted them."""
        return (
            sum(grade.prompt_tokens for grade in self.grades),
            sum(grade.completion_tokens for grade in self.grades),
        )

    def of(self, id: str) -> list[Grade]:
        """The grades of one row in the order of the runs."""
        return sorted((g for g in self.grades if g.id == id), key=lambda grade: grade.run)


def grade_run(
    folder: Path,
    judge: Judge,
    prompt: str,
    *,
    times: int = 5,
    parallel: int = 4,
    on_grade: Callable[[int, int], None] | None = None,
) -> Grades:
    """Grade every answer of a run `times` times; what is graded already is not sent again.

    A row that failed is not sent: it has no answer, and counts as 0. on_grade: (done, all).
    Raises DataError for a run of another benchmark or an unfinished one, RequestError where the judge
    refuses or where grades were made with another prompt.
    """
    rows = judgeable(folder)
    path = folder / "grades" / f"{slug(judge.model)}.jsonl"
    _same_prompt(path.with_suffix(".json"), judge.model, fingerprint(prompt))
    known = {(grade.id, grade.run): grade for grade in read_grades(path)}
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
        # Not waited for: a thread may be in the middle of a minute's pause for a busy server.
        pool.shutdown(wait=False, cancel_futures=True)
    kept = tuple(known[row.id, number] for row, number in wanted)
    return Grades(judge.model, fingerprint(prompt), times, kept)


def judgeable(folder: Path) -> list[Row]:
    """The rows of a finished ViP-Bench run. Raises DataError for anything else."""
    run = RunFolder.open(folder)
    benchmark = run.about["asked"].get("benchmark")
    if benchmark != "vip-bench":
        raise DataError(f"{folder} is a run of {benchmark}, whose answers need no judge")
    if not (folder / "scores.json").is_file():
        raise DataError(f"{folder}: the run was not finished; the same command goes on")
    return run.rows()


def _grade(judge: Judge, prompt: str, row: Row, number: int) -> Grade:
    question = str(row.facts["question"])
    asked = f"{prompt}\n{line(question, str(row.expected), row.answer)}"
    replies = [judge.ask(asked)]
    while (score := read_score(replies[-1].text)) is None and len(replies) < _TRIES:
        replies.append(judge.ask(asked + HINT, _HOTTER * len(replies)))
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


def read_grades(path: Path) -> list[Grade]:
    """The grades of a file; a last line that was cut is left out, in the file too."""
    try:
        return [Grade(**json.loads(text)) for text in whole_lines(path)]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no file of grades: {error}") from None


def _same_prompt(path: Path, model: str, prompt: str) -> None:
    """Grades of one file have one prompt."""
    asked: dict[str, Any] = {"judge": model, "prompt": prompt}
    if path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(f"{path} can't be read: {error}") from None
        if before != asked:
            raise RequestError(
                f"{path.parent} holds grades of {before.get('judge')} with prompt "
                f"{before.get('prompt')}, not {prompt}; move them away to grade anew"
            )
        return
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asked) + "\n", encoding="utf-8")


def by_row(grades: Iterable[Grade]) -> dict[str, list[float]]:
    """Row -> the scores of its runs; a grade without a number is 0."""
    found: dict[str, list[float]] = {}
    for grade in sorted(grades, key=lambda grade: grade.run):
        found.setdefault(grade.id, []).append(grade.score or 0.0)
    return found
