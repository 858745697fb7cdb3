"""Scores from grades, and the files of the published evaluator."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from vip_llava.evaluation.benchmarks.vip_bench import VipBench, capability_scores, full_id
from vip_llava.evaluation.judge.grading import Grades
from vip_llava.evaluation.results import ResultRow, Score
from vip_llava.evaluation.run_directory import RunDirectory, slug

__all__ = ["judged_scores", "write_judged"]


def judged_scores(rows: Sequence[ResultRow], grades: Grades) -> list[Score]:
    """The scores of the published tables, each the mean of the judge's runs, and their spread.

    The spread is the standard deviation of the total over the runs, in points of 100.
    """
    method = f"judge {grades.judge}, mean of {grades.times} runs, prompt {grades.prompt}"
    if grades.unread:
        method += f"; {grades.unread} of {len(grades.grades)} grades held no number and count as 0"
    scores = capability_scores(rows, grades.scores, method)
    for split, several in _splits(rows):
        spread = statistics.pstdev(_totals(several, grades))
        name = f"spread over runs, {split}"
        scores.append(Score(name, "", spread, len(several), kind="points", method=method))
    return scores


def write_judged(path: Path, rows: Sequence[ResultRow], grades: Grades) -> list[Score]:
    """Write `judged.json` and the published files to a run directory; returns the scores."""
    run = RunDirectory.open(path)
    scores = judged_scores(rows, grades)
    means = {id: statistics.fmean(several) for id, several in grades.scores.items()}
    listed = [asdict(score) for score in scores]
    run.write_json("judged.json", {"judge": grades.judge, "scores": listed, "rows": means})
    model = slug(str(run.info["config"]["model"]))
    for split, several in _splits(rows):
        stem, runs = f"results/{model}-{split}_{slug(grades.judge)}", f"{grades.times}runs"
        run.write(f"{stem}-grade-{runs}.json", _grade_file(several, grades))
        run.write(f"{stem}-cap-score-{runs}.csv", _csv(model, several, grades, _each))
        run.write(f"{stem}-cap-int-score-{runs}.csv", _csv(model, several, grades, _combined))
    return scores


def _splits(rows: Sequence[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    found = [(split, [row for row in rows if row.group == split]) for split in VipBench.groups]
    return [(split, several) for split, several in found if several]


def _totals(rows: Sequence[ResultRow], grades: Grades) -> list[float]:
    """The mean score of each run, 0..100."""
    scores, missing = grades.scores, [0.0] * grades.times
    return [
        100 * sum(scores.get(row.id, missing)[run] for row in rows) / len(rows)
        for run in range(grades.times)
    ]


def _each(row: ResultRow) -> list[str]:
    return list(row.facts["capability"])


def _combined(row: ResultRow) -> list[str]:
    return ["_".join(row.facts["capability"])]


def _csv(
    model: str,
    rows: Sequence[ResultRow],
    grades: Grades,
    columns_of: Callable[[ResultRow], list[str]],
) -> str:
    """A table with one line: the most common columns first, then total, std and runs."""
    scores = grades.scores
    counts = Counter(name for row in rows for name in columns_of(row))
    columns = [name for name, _ in counts.most_common()]
    line = [model]
    for name in columns:
        several = [scores.get(row.id, [0.0]) for row in rows if name in columns_of(row)]
        line.append(f"{100 * statistics.fmean(statistics.fmean(each) for each in several):.1f}")
    totals = _totals(rows, grades)
    line += [f"{statistics.fmean(totals):.1f}", f"{statistics.pstdev(totals):.1f}"]
    line.append(str([round(total, 1) for total in totals]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["", *columns, "total", "std", "runs"], line])
    return text.getvalue()


def _grade_file(rows: Sequence[ResultRow], grades: Grades) -> str:
    """{"v1_0": {"model": [...], "content": [...], "score": [...]}, ...}: one value per run."""
    found, by_row = {}, grades.by_row
    for row in rows:
        several = by_row.get(row.id, [])
        found[full_id(row.facts["question_id"])] = {
            "model": [grade.model for grade in several],
            "content": [grade.content for grade in several],
            "score": [grade.score or 0.0 for grade in several] or [0.0] * grades.times,
        }
    return json.dumps(found, indent=4) + "\n"
